from . import corpora as corpora, models as models, probes as probes, report as report, steering as steering
from . import study as study, valattn as valattn
from .corpora import Corpus as Corpus, load_corpus as load_corpus
from .errors import InputError as InputError
from .interventions import AttentionBias as AttentionBias, ResidualEdit as ResidualEdit
from .models import LiveModel as LiveModel, load_model as load_model, wrap as wrap
from .probes import (
    Direction as Direction,
    ProbeSet as ProbeSet,
    fit_probes as fit_probes,
    load_probes as load_probes,
    trace as trace,
)
from .steering import Sweep as Sweep, steer as steer, sweep as sweep
from .study import run_study as run_study
from .valattn import (
    Valuation as Valuation,
    compare_valuations as compare_valuations,
    inject as inject,
    learn_valuation as learn_valuation,
)

__version__: str
