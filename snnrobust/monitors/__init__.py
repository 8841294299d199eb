"""What goes on inside a network: firing rates, silent and saturated neurons, membranes, rasters."""

from snnrobust.monitors.monitor import monitor
from snnrobust.monitors.plots import membranes, raster
from snnrobust.monitors.record import Activity, MembraneStatistics, Record
from snnrobust.monitors.trace import Trace, trace

__all__ = ["Activity", "MembraneStatistics", "Record", "Trace", "membranes", "monitor", "raster", "trace"]
