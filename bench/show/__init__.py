"""What is shown of a run. Nothing is measured here.

table        the terminal: plan, progress, targets
report       the HTML report, with all tables and all pictures
page         docs/benchmarks.md, with a few of them
compare      two runs side by side: what changed beyond noise
lanes        a run cut into sections and lines
wording      how metrics, numbers and bias are written, the same everywhere
pictures     which plots a run gives, with their words
plots, cost_plots, plot_style   how they are drawn
fleet_table, fleet_plot   simulated fleets, in the terminal and as a picture
templates    the report and the page
"""
