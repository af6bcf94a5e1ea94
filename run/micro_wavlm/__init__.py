"""How the weights of `-u micro_wavlm` were made: masked prediction of k-means units, and probes.

Audio cache -> units -> stages of training (run/pretrain_micro.py); linear probes of what came out
(run/probe_layers.py).
"""
