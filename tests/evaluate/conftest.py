"""One thread: the tensors here are tiny, and on a busy machine threads would wait for each other."""

import torch

torch.set_num_threads(1)
