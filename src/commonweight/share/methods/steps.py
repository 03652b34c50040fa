"""A shared block as an ordinary differential equation: fewer, longer steps."""

from __future__ import annotations

from ...address import WHOLE
from ...bind import Step, Times
from ...builder import Anatomy, Layout, Unit, Weight, tied
from ...core import CommonweightError, Constant, Pool, Read, Use, config, option
from .. import maps
from ..registry import method


@config
class Steps:
    units: int = option(1, "different blocks, used in turn", ge=1)
    steps: int | None = option(None, "how many blocks are run, M; none: half the depth N", ge=1)
    init: str = option("average", "which layers a unit begins with: stepwise, average, lower or upper")
    scale: bool = option(True, "each step is N / M long; off: as long as before")
    train: bool = option(False, "the lengths are trained")

    def check(self) -> str | None:
        return None if self.init in maps.INITS else f"init is {self.init!r}; wanted one of {', '.join(maps.INITS)}"


@method(
    "steps",
    Steps,
    paper="Can Parameter-Shared Pre-trained Language Models Be Accelerated (neural ODE), arXiv 2310.12818",
    shares="one block, run fewer times with longer steps",
    sizes=lambda depth: [{"steps": max(1, depth // n)} for n in (2, 3)],
)
def plan(anatomy: Anatomy, config: Steps) -> Layout:
    """h <- h + (N / M) f(h), M times, in place of h <- h + f(h), N times: Euler's method with longer steps.

    Parameters: `units` layers, and M numbers. M = N is the tied model itself. Where the norm stands behind the residual
    (BERT, ALBERT) each sublayer's output is scaled before it is added. Source: the abstract of arXiv 2310.12818, which
    is all that was found; the rule follows from it. Not built, as it is not described there and no code was found: how
    a model is pretrained so that fewer iterations do (how many are drawn for a batch, with what weights), and the
    partially shared models. `heal` with the plan's own M is what there is.
    """
    depth = anatomy.depth
    m = config.steps or max(1, depth // 2)
    if m > depth:
        raise CommonweightError(f"steps: {m} steps; the model has {depth} layers")
    if depth < config.units:
        raise CommonweightError(f"steps: {config.units} units of {depth} layers")
    like = maps.spaced(0, depth - 1, m)
    loops = depth // config.units

    def unit(at: int, weight: Weight) -> Unit | None:
        k = at % config.units
        return Unit(f"unit{k}", maps.fillers(k, config.units, loops, "cycle", config.init))

    layout = tied(anatomy, like, unit)
    if not config.scale and not config.train:
        return layout
    length = depth / m if config.scale else 1.0
    pools, uses = {}, []
    for at in range(m):
        pools[f"step.{at}"] = Pool((1,), Constant(length), train=config.train, dtype=anatomy.blocks[0][0].dtype)
        behind = [w.module for w in anatomy.blocks[like[at]] if w.role in ("attn_out", "down") and w.kind == "linear"]
        if _post(anatomy):
            uses += [Use(f"{at}.{n}", Times(), {"v": Read(WHOLE, (f"step.{at}",))}) for n in behind]
        else:
            uses.append(Use(str(at), Step(), {"g": Read(WHOLE, (f"step.{at}",))}))
    return layout.plus(pools, uses)


def _post(anatomy: Anatomy) -> bool:
    """Whether the norms stand behind the residuals, as in BERT."""
    return any(w.name.endswith("output.LayerNorm.weight") for w in anatomy.blocks[0])
