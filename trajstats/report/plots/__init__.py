"""One plot per result; each takes and returns matplotlib Axes."""

from trajstats.report.plots.fits import plot_collapse as plot_collapse
from trajstats.report.plots.fits import plot_corner as plot_corner
from trajstats.report.plots.fits import plot_decay as plot_decay
from trajstats.report.plots.fits import plot_divergence as plot_divergence
from trajstats.report.plots.fits import plot_mu_estimators as plot_mu_estimators
from trajstats.report.plots.fits import plot_scan as plot_scan
from trajstats.report.plots.glasses import plot_fluctuation_dissipation as plot_fluctuation_dissipation
from trajstats.report.plots.glasses import plot_glass_comparison as plot_glass_comparison
from trajstats.report.plots.glasses import plot_glass_correlation as plot_glass_correlation
from trajstats.report.plots.glasses import plot_glass_energy as plot_glass_energy
from trajstats.report.plots.posterior import plot_posterior as plot_posterior
from trajstats.report.plots.response import plot_feature_space as plot_feature_space
from trajstats.report.plots.response import plot_fragility as plot_fragility
from trajstats.report.plots.response import plot_response_decay as plot_response_decay
from trajstats.report.plots.spectra import plot_curvatures as plot_curvatures
from trajstats.report.plots.spectra import plot_flat_directions as plot_flat_directions
from trajstats.report.plots.spectra import plot_spectrum as plot_spectrum
from trajstats.report.plots.spectra import plot_top_eigenvalues as plot_top_eigenvalues
from trajstats.report.plots.two_time import plot_local_exponent as plot_local_exponent
from trajstats.report.plots.two_time import plot_loss as plot_loss
from trajstats.report.plots.two_time import plot_msd as plot_msd
from trajstats.report.plots.two_time import plot_msd_layers as plot_msd_layers
from trajstats.report.plots.two_time import plot_two_time_map as plot_two_time_map
from trajstats.report.plots.two_time import plot_van_hove as plot_van_hove
