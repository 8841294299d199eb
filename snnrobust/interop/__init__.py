"""Models of other libraries, as classifiers that can be attacked, evaluated and diagnosed without changing their code."""

from snnrobust.interop.examine import HiddenStateError
from snnrobust.interop.wrap import Wrapped, wrap

__all__ = ["HiddenStateError", "Wrapped", "wrap"]
