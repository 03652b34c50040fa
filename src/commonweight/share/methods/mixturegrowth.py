"""MixtureGrowth's templates: each matrix is a grid of blocks, and every block a mixture of common templates."""

from __future__ import annotations

from dataclasses import replace

from ...address import Tiles
from ...bind import Replace
from ...builder import Anatomy, Layout, Templates, tied
from ...core import CommonweightError, Pool, Read, Use, config, option
from ..registry import method


@config
class MixtureGrowth:
    templates: int | None = option(None, "templates of each kind of matrix; none: half as many as blocks", ge=1)
    groups: int = option(1, "stretches of layers, each with templates of its own", ge=1)
    grid: int = option(2, "a matrix is cut into grid x grid blocks", ge=1)


@method(
    "mixturegrowth",
    MixtureGrowth,
    paper="MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters, arXiv 2311.04251",
    shares="blocks of matrices, mixed of common templates",
    sizes=lambda depth: [{"templates": max(1, 4 * depth // n)} for n in (2, 3)],
)
def plan(anatomy: Anatomy, config: MixtureGrowth) -> Layout:
    """Block b of layer l's matrix is sum_t c_lbt T_t, one bank T for each kind of matrix and stretch of layers.

    Parameters: t o i / g^2 for each bank, g^2 t for each matrix; norms and biases are each layer's own. As many
    templates as blocks are the model itself. Source: arXiv 2311.04251, section 3.1; code chaudatascience/mixturegrowth.
    Differs: the paper trains the templates of two half-width networks, then grows one of them (`address.grown` has the
    rule for the new coefficients, for a matrix); here templates are those nearest to a pretrained model's blocks, and
    all layers mix them, not one alone. A model that is as wide as two is not built.
    Raises: CommonweightError for a matrix whose sides the grid does not divide.
    """
    depth, g = anatomy.depth, config.grid
    if config.groups > depth:
        raise CommonweightError(f"mixturegrowth: groups={config.groups}; the model has {depth} layers")
    layout = tied(anatomy, range(depth), lambda at, weight: None)
    pools, uses = dict(layout.plan.pools), []
    group = [at * config.groups // depth for at in range(depth)]
    for use in layout.plan.uses:
        at, _, name = use.site.partition(".")
        w = next(w for w in anatomy.blocks[int(at)] if w.name == name)
        if w.kind != "linear":
            uses.append(use)
            continue
        if w.shape[0] % g or w.shape[1] % g:
            raise CommonweightError(f"mixturegrowth: {name} is {list(w.shape)}, which grid={g} does not divide")
        mine = group[int(at)]
        of = tuple(f"{i}.{name}" for i in range(depth) if group[i] == mine)
        most = min(g * g * len(of), w.shape[0] * w.shape[1] // g**2)
        t = min(config.templates or max(1, most // 2), most)
        bank, own = f"templates{mine}.{name}", f"{at}.{name}.coefficients"
        shape = (t, w.shape[0] // g, w.shape[1] // g)
        pools.setdefault(bank, Pool(shape, Templates(of, g, "templates"), dtype=w.dtype))
        pools[own] = Pool((g * g, t), Templates(of, g, "coefficients", use.site), dtype=w.dtype)
        del pools[use.reads["weight"].pools[0]]
        uses.append(Use(use.site, Replace(), {"weight": Read(Tiles(g), (bank, own))}))
    return replace(layout, plan=layout.plan._replace(pools=pools, uses=tuple(uses)))
