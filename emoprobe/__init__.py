"""Find functional emotions in language models: probes with controls, valuation attention, steering, reports."""

from . import _checkout as _checkout

# isort: split

import lazy_loader

__version__ = "0.1.0"

# Everything heavy (torch, transformers, datasets, …) loads when one of these names is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["corpora", "models", "probes", "report", "steering", "study", "valattn"],
    submod_attrs={
        "corpora": ["Corpus", "load_corpus"],
        "errors": ["InputError"],
        "interventions": ["AttentionBias", "ResidualEdit"],
        "models": ["LiveModel", "load_model", "wrap"],
        "probes": ["Direction", "ProbeSet", "fit_probes", "load_probes", "trace"],
        "steering": ["Sweep", "steer", "sweep"],
        "study": ["run_study"],
        "valattn": ["Valuation", "compare_valuations", "inject", "learn_valuation"],
    },
)
