"""The processes that measure, seen from the one that starts them, which measures nothing itself.

    groups     which worker measures which cases, and its environment
    runner     starts the workers one after another, and collects what they send
    protocol   how the two sides talk: JSON lines
    estimate   how long cases will take, roughly

The workers themselves are `on_serve/worker.py`, `http/worker.py` and `ray_programs/worker.py`.
"""
