"""What a run found, and the arithmetic over it. No printing, nothing of Ray.

run       a run, its cases and samples, and their JSON form
costs     rows of a run: what the parts of a call cost
doors     rows of a run: what proofs of membership and TLS cost
stats     medians of rounds, ratios paired by round, whether targets are met
noise     whether two sets of rounds differ by more than noise
machine   where and with what a run was made
"""
