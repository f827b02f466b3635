"""The published pipelines that `veojax convert` knows."""
from veojax.zoo import animatediff
from veojax.zoo.mochi import MOCHI
from veojax.zoo.svd import SVD

PUBLISHED = (MOCHI, SVD, *animatediff.ALL)
