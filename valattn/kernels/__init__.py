"""A flash-attention kernel with a term of low rank in its scores, in Triton, for GPUs of Hopper's kind.

Nothing here is imported before it is asked for: Triton is an optional dependency. `emoprobe.valattn.kernels.flash` holds the
function, `forward` and `backward` the kernels, `blocks` what they share, `tiles` the block sizes.
"""
