"""Speed of snnrobust beside its peers: ``python -m benchmarks``. Not part of the installed package."""
