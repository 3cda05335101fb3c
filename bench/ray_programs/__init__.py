"""Running the benchmark programs of Ray's own wheel; their cases are in `plan/ray_programs.py`.

programs   runs one over a transport of choice, and what is swapped for it
worker     the process that does so, contenders in turns
"""
