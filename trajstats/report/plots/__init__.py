"""One plot per result; each takes and returns matplotlib Axes."""

from trajstats.report.plots.fits import plot_collapse as plot_collapse
from trajstats.report.plots.spectra import plot_spectrum as plot_spectrum
from trajstats.report.plots.posterior import plot_posterior as plot_posterior
