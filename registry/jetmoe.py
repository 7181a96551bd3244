"""JetMoE: a mixture of attention experts."""

from deltamem.hook import Unsupported

HOOKS = {"jetmoe": Unsupported("its query and output projections are mixtures of experts, not one linear map each")}
