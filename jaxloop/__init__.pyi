"""What `jaxloop` exports, for type checkers; `__init__.py` imports each name when it is used."""

from jaxloop.api.formulas import (
    closed_form as closed_form,
)
from jaxloop.api.formulas import (
    simulate as simulate,
)
from jaxloop.api.loops import (
    loop as loop,
)
from jaxloop.api.measures import (
    evaluate as evaluate,
)
from jaxloop.api.models import (
    Adapter as Adapter,
)
from jaxloop.api.models import (
    finetune as finetune,
)
from jaxloop.api.models import (
    finetune_many as finetune_many,
)
from jaxloop.api.models import (
    generate as generate,
)
from jaxloop.api.models import (
    instruction as instruction,
)
from jaxloop.api.models import (
    load as load,
)
from jaxloop.api.models import (
    load_adapter as load_adapter,
)
from jaxloop.api.models import (
    merge as merge,
)
from jaxloop.api.models import (
    save as save,
)
from jaxloop.api.models import (
    save_adapter as save_adapter,
)
from jaxloop.api.models import (
    score as score,
)
from jaxloop.api.runs import (
    RunResult as RunResult,
)
from jaxloop.api.runs import (
    check as check,
)
from jaxloop.api.runs import (
    load_config as load_config,
)
from jaxloop.api.runs import (
    open_run as open_run,
)
from jaxloop.api.runs import (
    plan as plan,
)
from jaxloop.api.runs import (
    run as run,
)
from jaxloop.config import (
    FitConfig as FitConfig,
)
from jaxloop.config import (
    LoraConfig as LoraConfig,
)
from jaxloop.config import (
    SampleConfig as SampleConfig,
)
from jaxloop.recursion import workflow as workflows  # noqa: F401

__version__: str
