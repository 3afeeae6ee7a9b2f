from . import corpora as corpora
from . import explorer as explorer
from . import models as models
from . import probes as probes
from . import report as report
from . import steering as steering
from . import study as study
from . import valattn as valattn
from .activation_store import ActivationStore as ActivationStore
from .activation_store import load_activations as load_activations
from .activation_store import store_activations as store_activations
from .corpora import Corpus as Corpus
from .corpora import load_corpus as load_corpus
from .errors import InputError as InputError
from .explorer import explore as explore
from .interventions import AttentionBias as AttentionBias
from .interventions import ResidualEdit as ResidualEdit
from .models import LiveModel as LiveModel
from .models import load_model as load_model
from .models import wrap as wrap
from .notebook import export as export
from .probes import (
    Direction as Direction,
)
from .probes import (
    ProbeSet as ProbeSet,
)
from .probes import (
    emotion_vectors as emotion_vectors,
)
from .probes import (
    fit_probes as fit_probes,
)
from .probes import (
    load_probes as load_probes,
)
from .probes import (
    push_to_hub as push_to_hub,
)
from .probes import (
    trace as trace,
)
from .steering import Sweep as Sweep
from .steering import steer as steer
from .steering import sweep as sweep
from .study import run_claims as run_claims
from .study import run_concepts as run_concepts
from .study import run_study as run_study
from .valattn import (
    EmotionStream as EmotionStream,
)
from .valattn import (
    Valuation as Valuation,
)
from .valattn import (
    compare_valuations as compare_valuations,
)
from .valattn import (
    inject as inject,
)
from .valattn import (
    learn_valuation as learn_valuation,
)
from .workers import ray_workers as ray_workers

__version__: str
