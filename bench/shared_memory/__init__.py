"""What each step of a payload through shared memory costs; `python -m bench.shared_memory`.

steps     the steps, in one process: making, copying, mapping, reading, writing, dropping
"""
