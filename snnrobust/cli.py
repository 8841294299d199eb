"""The command line."""

from __future__ import annotations

import ctypes
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snnrobust.attacks import Attack
    from snnrobust.energy import Operations
    from snnrobust.experiments import Experiment
    from snnrobust.models import SpikingClassifier


def _prepare() -> None:
    """What has to be set before torch is loaded, for this process only."""
    # On a machine that is also busy with something else, threads that spin while they wait made small operations
    # 40 times slower than threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc gives large blocks back to the system when they are freed and faults them in again page by page: without this
    # an attack on the demo's network spends a third of its time there.
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)):
            mallopt(parameter, value)


_prepare()

app = typer.Typer(
    name="snnrobust",
    help="Train, attack and harden spiking neural networks, and judge their robustness.\n\nExample: snnrobust demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; by default runs/NAME.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


@contextmanager
def _errors() -> Iterator[None]:
    """A mistake of the user's is one message, not a traceback; so is a warning."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: typer.secho(f"warning: {message}", fg="yellow", err=True)
            yield
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def _width() -> int:
    return max(80, min(140, shutil.get_terminal_size((110, 24)).columns))


def _run(read: Callable[[], tuple[Experiment, str]], folder: Path, quiet: bool) -> None:
    from snnrobust import experiments
    from snnrobust.evaluation import RobustnessReport

    with _errors():
        experiment, text = read()
        finished = (folder / "results.json").exists()
        results = experiments.run(experiment, text, folder, progress=not quiet)
        if finished:
            typer.echo(f"{folder} was finished already")
    typer.echo(RobustnessReport(**results["report"]).summary(_width()))
    for model, found in results["diagnoses"].items():
        typer.echo(f"gradient of {model}: {found['verdict']}")
        for check in found["checks"]:
            if check["status"] in ("failed", "inconclusive"):
                typer.echo(f"  {check['status']}: {check['name']} ({check['found']})")
    for model, exits in results.get("exits", {}).items():
        low, high = exits["interval"]
        typer.echo(
            f"{model} stops after {exits['mean_steps']:.2f} [{low:.2f}, {high:.2f}] of {exits['time_steps']} steps on average, "
            f"at confidence {exits['confidence']:g} (clean inputs)"
        )
    for model, found in results.get("precision", {}).items():
        typer.echo(
            f"{model}: {found['bytes']:,.0f} bytes of weights ({8 * found['bytes'] / found['weights']:.2f} bits each), "
            f"{found['usual_pj'] / 1000:.1f} nJ of arithmetic and {found['traffic_pj'] / 1000:.1f} nJ of traffic a sample"
        )
    for trap in results["traps"]:
        typer.echo(f"\nOn purpose false: {trap['model']}. {trap['text']}")
    typer.echo(f"\nreport: {folder / 'report.html'}")


@app.command()
def demo(
    trainer: Annotated[
        str | None, typer.Option(help="Learning rule of the SNN, such as DFA; `snnrobust list` has all.")
    ] = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Train an ANN and an SNN on handwritten digits, attack both, put them on imperfect chips, and judge them.

    Example: snnrobust demo --trainer dfa
    """
    from snnrobust.experiments import parse
    from snnrobust.learning_rules import rule_name

    text = (resources.files("snnrobust.experiments") / "demo.toml").read_text(encoding="utf-8")
    folder = Path("runs/demo")
    if trainer is not None:
        with _errors():
            trainer = rule_name(trainer)
        text = f'trainer = "{trainer}"  # of every spiking network, in place of its own\n{text}'
        folder = Path(f"runs/demo-{trainer.lower()}")
    _run(lambda: (parse(text, "the demo"), text), output or folder, quiet)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="An experiment file (TOML).")],
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Run an experiment file; on an interrupted run's folder, go on where it stopped.

    Example: snnrobust run examples/digits.toml -o runs/digits
    """
    from snnrobust.experiments import read

    _run(lambda: read(experiment), output or Path("runs") / experiment.stem, quiet)


@app.command()
def attack(
    checkpoint: Annotated[Path, typer.Argument(help="A model's checkpoint (safetensors).")],
    data: Annotated[
        str, typer.Option(help="Data set: digits, mnist, fashion-mnist, cifar10 or cifar10-small.")
    ] = "digits",
    attack: Annotated[str, typer.Option(help="An attack, such as PGD; `snnrobust list` has all.")] = "PGD",
    suite: Annotated[
        str | None, typer.Option(help="In place of one attack: standard, the suite by which robustness is claimed.")
    ] = None,
    norm: Annotated[str, typer.Option(help="Norm of the budgets: linf, l2, l1 or l0 (pixels).")] = "linf",
    eps: Annotated[list[str] | None, typer.Option(help='Budgets, such as 0.1 or "8/255"; may be repeated.')] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the attack; by default its own number, 20 for PGD.")
    ] = None,
    restarts: Annotated[int | None, typer.Option(help="Random starts; by default 1.")] = None,
    eot: Annotated[
        int | None, typer.Option(help="Draws averaged in each gradient, for a model with randomness; by default 4.")
    ] = None,
    gradient: Annotated[str | None, typer.Option(help="Gradient source, such as ASSG; by default Backprop.")] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(help="Transfer: craft on the model of this checkpoint; with --suite it may be repeated."),
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="After the suite, the equal-budget control and doubled effort: three times the work.")
    ] = True,
    diagnosed: Annotated[
        bool, typer.Option("--diagnose/--no-diagnose", help="After the suite, the diagnosis, at the first budget.")
    ] = True,
    samples: Annotated[int, typer.Option(help="The first so many test samples.")] = 200,
    selection_draws: Annotated[int, typer.Option(help="Draws that select, for a model with randomness.")] = 32,
    judge_draws: Annotated[int, typer.Option(help="Draws that judge, for a model with randomness.")] = 128,
    seed: int = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for a report; an interrupted attack goes on from there."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Attack the model of a checkpoint and print its robust accuracy.

    Example: snnrobust attack runs/demo/models/snn.safetensors --eps 0.1 --eps 8/255 --steps 40

    With the standard suite: snnrobust attack CHECKPOINT --suite standard --data mnist --eps 0.1 --samples 1000 -o runs/suite
    """
    from snnrobust import checks, evaluation
    from snnrobust import data as datasets
    from snnrobust.attacks import Linf, standard
    from snnrobust.draws import is_stochastic
    from snnrobust.experiments.build import build_attack, build_threat, takes_gradient
    from snnrobust.experiments.component import Component
    from snnrobust.experiments.config import AttackSection

    with _errors():
        model = _load(checkpoint)
        test = datasets.load(data, "test")
        _probe(model, test.tensors[0][:1], f"{checkpoint} does not fit --data {data}")
        others = {f"model {i}": _load(path) for i, path in enumerate(source or [], 1)}
        threat = build_threat(Component(type=_norm(norm)))
        if not eps and not isinstance(threat, Linf):
            raise ValueError(f"--norm {norm} needs --eps: budgets of 8/255 are for linf")
        arguments = {k: v for k, v in (("steps", steps), ("restarts", restarts)) if v is not None}
        crafted: Attack
        if suite is not None:
            checks.choice("--suite", suite, ["standard"])
            for option, given in (
                ("--steps", steps),
                ("--restarts", restarts),
                ("--eot", eot),
                ("--gradient", gradient),
            ):
                if given is not None:
                    raise ValueError(f"{option} says nothing to a suite, which is fixed beforehand: leave it out")
            label, crafted = suite, standard(threat, transfer=tuple(others.values()))
        else:
            if len(others) > 1:
                raise ValueError("one --source is enough for a transfer; --suite standard takes several")
            label = f"transfer of {attack}" if others else attack
            section = AttackSection(
                name=label,
                attack=Component.model_validate({"type": attack, **arguments}),
                eot=eot if eot is not None else 4 if takes_gradient(attack) else 1,
                gradient=None if gradient is None else Component(type=gradient),
                source=next(iter(others), None),
            )
            differentiated = next(iter(others.values()), model)
            crafted = build_attack(section, others, is_stochastic(differentiated, test.tensors[0][:16]), threat)
        report = evaluation.evaluate(
            model, test, {label: crafted}, eps=eps or ["8/255"], n=samples, seed=seed, selection_draws=selection_draws,
            judge_draws=judge_draws, name=checkpoint.stem, controls=controls, progress=not quiet, chips=_seat(checkpoint),
            folder=None if output is None else output / "cells",
        )  # fmt: skip
        diagnoses = {}
        if suite is not None and diagnosed:
            found = evaluation.diagnose(
                model, test, threat.at((eps or ["8/255"])[0]), source=next(iter(others.values()), None),
                n=min(samples, 128), seed=seed, progress=not quiet,
            )  # fmt: skip
            diagnoses[checkpoint.stem] = found.to_json()
    typer.echo(report.summary(_width()))
    if suite is not None:
        typer.echo(f"{found}\n" if diagnosed else "the gradient was not examined: leave --no-diagnose out\n")
        typer.echo(f"for a paper: {evaluation.paragraph(report)}\n")
    if output is not None:
        typer.echo(f"report: {report.save(output, diagnoses)}")


def _seat(path: Path) -> dict[str, nn.Module | None]:
    """Where the model of a file runs, as the report calls it."""
    from snnrobust.evaluation.report import IDEAL
    from snnrobust.models.checkpoint import kind_of

    return {"chip" if kind_of(path) == "chip" else IDEAL: None}


def _load(path: Path) -> nn.Module:
    """The model of a checkpoint, or the chip of a chip's file."""
    from snnrobust import hardware, models
    from snnrobust.models.checkpoint import kind_of

    return hardware.load(path) if kind_of(path) == "chip" else models.load(path)


def _norm(given: str) -> str:
    """The registered name of a threat that is written in any case."""
    from snnrobust import checks
    from snnrobust.attacks import THREATS

    names = {name.lower(): name for name in THREATS}
    return names[checks.choice("--norm", given.lower(), names)]


@app.command()
def diagnose(
    checkpoint: Annotated[Path, typer.Argument(help="A model's checkpoint (safetensors).")],
    eps: Annotated[str, typer.Option(help='The budget that the claim is about, such as 0.1 or "8/255".')],
    data: Annotated[
        str, typer.Option(help="Data set: digits, mnist, fashion-mnist, cifar10 or cifar10-small.")
    ] = "digits",
    norm: Annotated[str, typer.Option(help="Norm of the budget: linf, l2, l1 or l0 (pixels).")] = "linf",
    gradient: Annotated[
        str | None, typer.Option(help="Gradient to examine, such as ASSG; by default Backprop.")
    ] = None,
    eot: Annotated[int, typer.Option(help="Draws averaged in it, for a model with randomness.")] = 4,
    source: Annotated[Path | None, typer.Option(help="Another model's checkpoint, for transfer.")] = None,
    check: Annotated[list[str] | None, typer.Option(help="Only this check; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(help="The first so many test samples.")] = 128,
    draws: Annotated[int, typer.Option(help="Draws that judge, for a model with randomness.")] = 32,
    seed: int = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the result, as JSON.")] = None,
    quiet: Quiet = False,
) -> None:
    """Ask whether attacks on the model of a checkpoint can be believed, or its gradient hides the way.

    Example: snnrobust diagnose runs/demo/models/snn.safetensors --eps 0.1 --source runs/demo/models/ann.safetensors
    """
    import json

    from snnrobust import checks, evaluation
    from snnrobust import data as datasets
    from snnrobust.attacks import EOT
    from snnrobust.draws import is_stochastic
    from snnrobust.experiments.build import build_gradient, build_threat
    from snnrobust.experiments.component import Component

    with _errors():
        model = _load(checkpoint)
        test = datasets.load(data, "test")
        x = test.tensors[0][:16]
        _probe(model, x[:1], f"{checkpoint} does not fit --data {data}")
        examined = build_gradient(Component(type=gradient or "Backprop"), "--gradient")
        if eot > 1 and is_stochastic(model, x):
            examined = EOT(eot, examined)
        threat = build_threat(Component(type=_norm(norm)), checks.fraction("--eps", eps))
        report = evaluation.diagnose(
            model, test, threat, gradient=examined, source=None if source is None else _load(source), checks=check,
            n=samples, seed=seed, draws=draws, progress=not quiet,
        )  # fmt: skip
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    typer.echo(str(report))


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A model's checkpoint (safetensors).")],
    data: Annotated[
        str, typer.Option(help="Data set: digits, mnist, fashion-mnist, cifar10 or cifar10-small.")
    ] = "digits",
    samples: Annotated[int, typer.Option(help="The first so many test samples.")] = 200,
    seed: Annotated[int, typer.Option(help="Key of the model's draws.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for JSON and pictures.")] = None,
) -> None:
    """Show what the model of a checkpoint does: operations by layer, activity of its neurons, accuracy if it stops early.

    Example: snnrobust inspect runs/demo/models/snn.safetensors -o runs/inspected
    """
    from snnrobust import data as datasets
    from snnrobust import energy, models, monitors
    from snnrobust.draws import draws
    from snnrobust.layers import BNTT
    from snnrobust.models.exit_curve import CONFIDENCES

    with _errors():
        model = _load(checkpoint)
        x, y = datasets.take(datasets.load(data, "test"), samples)
        _probe(model, x[:1], f"{checkpoint} does not fit --data {data}")
        confidences = set(CONFIDENCES)
        if isinstance(model, models.EarlyExit):
            typer.echo(f"exits at confidence {model.confidence:g}; what follows is of all its time steps\n")
            confidences.add(model.confidence)
            model = model.model
        record = curve = None
        with draws(model, seed), ExitStack() as watching:
            with suppress(ValueError):  # no neurons to watch, as in an LSTM
                record = watching.enter_context(monitors.monitor(model))
            operations = energy.count_operations(model, x)
        typer.echo(f"operations\n{operations.table()}\n")
        if record is not None:
            typer.echo(f"activity\n{record.table()}\n")
        if isinstance(model, models.SpikingClassifier):
            curve = models.exit_curve(model, (x, y), sorted(confidences), key=seed)
            typer.echo(f"early exit\n{curve.table(operations)}\n")
            if any(isinstance(m, BNTT) for m in model.modules()):
                typer.echo(f"{_gammas(model, operations)}\n")
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            operations.save(output / "operations.json")
            if record is not None:
                record.plot(output / "rates.png")
            if curve is not None:
                curve.plot(output / "exit.png")
            typer.echo(f"written to {output}")


def _gammas(model: SpikingClassifier, operations: Operations) -> str:
    """What BNTT says of the time steps: mean sizes of gamma, and what exiting by them saves."""
    from snnrobust.models import exit_step, gamma_profile

    profile = gamma_profile(model)
    width = max(map(len, (*profile, "mean |gamma| at step")))
    lines = [f"{'mean |gamma| at step':<{width}}" + "".join(f"{t:>7}" for t in range(1, model.time_steps + 1))]
    lines += [f"{name:<{width}}" + "".join(f"{g:7.3f}" for g in sizes.tolist()) for name, sizes in profile.items()]
    steps = exit_step(model, 0.1)
    cut = operations.upto(steps)
    if steps == model.time_steps:
        return "\n".join([*lines, f"no step can be left out: at step {steps} it is 0.1 or more in some layer"])
    saved = f"saves {operations.mac - cut.mac:,.0f} MAC and {operations.ac - cut.ac:,.0f} AC a sample"
    return "\n".join(
        [*lines, f"below 0.1 in every layer after step {steps} of {model.time_steps}: stopping there {saved}"]
    )


def _probe(model: nn.Module, x: Tensor, problem: str) -> None:
    try:
        model(x)
    except RuntimeError as error:
        raise ValueError(f"{problem}, whose images are {list(x.shape[1:])}: {error}") from error


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")]) -> None:
    """Print a run's results and write its report.html anew.

    Example: snnrobust report runs/demo
    """
    from snnrobust import experiments
    from snnrobust.evaluation import RobustnessReport

    with _errors():
        results = experiments.read_results(folder)
        path = experiments.render_folder(folder)
    typer.echo(RobustnessReport(**results["report"]).summary(_width()))
    typer.echo(f"report: {path}")


@app.command("list")
def list_() -> None:
    """List everything that an experiment file can name.

    Example: snnrobust list
    """
    from rich.console import Console
    from rich.table import Table

    from snnrobust.experiments.build import NAMES

    table = Table("what", "names")
    for what, names in NAMES.items():
        table.add_row(what, ", ".join(sorted(names)))
    Console().print(table)


@app.command()
def doctor() -> None:
    """Show versions, threads, kernels, devices and the data that is found.

    Example: SNNROBUST_DATA=~/data snnrobust doctor
    """
    from rich.console import Console
    from rich.table import Table

    from snnrobust.experiments.installation import findings

    table = Table("what", "found")
    for what, found in findings():
        table.add_row(what, found)
    Console().print(table)


if __name__ == "__main__":
    app()
