"""Self-supervised pre-training of the small shipped upstream: audio cache -> k-means units -> masked prediction."""
