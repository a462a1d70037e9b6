"""One plot per result; each takes and returns matplotlib Axes."""

from trajstats.report.plots.fits import plot_collapse as plot_collapse
from trajstats.report.plots.posterior import plot_posterior as plot_posterior
from trajstats.report.plots.spectra import plot_spectrum as plot_spectrum
from trajstats.report.plots.two_time import plot_loss as plot_loss
from trajstats.report.plots.two_time import plot_msd as plot_msd
