"""What is measured, who takes part, and what has to be shown. Pure: tables, no Ray.

plans         the full plan and the quick one, cut out of all cases
sweeps        the cases on Serve, sweep by sweep
http          the cases over HTTP
ray_programs  the cases that run Ray's own programs
contenders    the names of who is measured, and what they mean
targets       what serve_grpc has to show
"""
