# The public names, by submodule. lazy_loader reads this file when sparseflow is imported.

from . import (
    core as core,
    data as data,
    init as init,
    integrations as integrations,
    masks as masks,
    measure as measure,
    models as models,
    paper as paper,
    plotting as plotting,
    recipes as recipes,
    report as report,
    runs as runs,
    sparse as sparse,
    studies as studies,
    topology as topology,
    train as train,
)
from .core.code import use as use
from .core.errors import SparseflowError as SparseflowError
from .core.functional import Loss as Loss
from .core.layouts import register_layout as register_layout
from .core.parameters import (
    Layer as Layer,
    maskable as maskable,
)
from .core.schedules import (
    Cubic as Cubic,
    Moment as Moment,
    constant as constant,
    cosine as cosine,
    cubic as cubic,
    every as every,
    lr_proportional as lr_proportional,
)
from .core.values import (
    Value as Value,
    register_part as register_part,
)
from .data import register_data as register_data
from .init import (
    INITS as INITS,
    Init as Init,
    Initialisation as Initialisation,
    initialise as initialise,
    register_init as register_init,
    sparsify as sparsify,
)
from .masks import (
    Masks as Masks,
    allocate as allocate,
    churn as churn,
    full_masks as full_masks,
    make_masks as make_masks,
    shuffle_masks as shuffle_masks,
)
from .measure import (
    Agreement as Agreement,
    Alignment as Alignment,
    Chunks as Chunks,
    Comparison as Comparison,
    Curvature as Curvature,
    Decrease as Decrease,
    Distance as Distance,
    Distances as Distances,
    Eigenvalues as Eigenvalues,
    Estimate as Estimate,
    Flops as Flops,
    Flow as Flow,
    Map as Map,
    Path as Path,
    Plane as Plane,
    Score as Score,
    Signal as Signal,
    SpectralDensity as SpectralDensity,
    Spectrum as Spectrum,
    Trace as Trace,
    align as align,
    calibration as calibration,
    disagreement as disagreement,
    distance as distance,
    distances as distances,
    divergence as divergence,
    eigenvalues as eigenvalues,
    ensemble as ensemble,
    flops as flops,
    gauss_newton as gauss_newton,
    gradient_flow as gradient_flow,
    hessian as hessian,
    interpolate as interpolate,
    loss_and_accuracy as loss_and_accuracy,
    mds as mds,
    mean_interval as mean_interval,
    median_interval as median_interval,
    pair_difference as pair_difference,
    pair_interval as pair_interval,
    paired as paired,
    pairwise as pairwise,
    plane as plane,
    predict as predict,
    proportion_interval as proportion_interval,
    score as score,
    signal as signal,
    spectral_density as spectral_density,
    spectrum as spectrum,
    step_decrease as step_decrease,
    trace as trace,
    unpaired as unpaired,
    verdict as verdict,
)
from .models import register_model as register_model
from .recipes import (
    Family as Family,
    register_family as register_family,
)
from .sparse import (
    LayerPlan as LayerPlan,
    Plan as Plan,
    SparseConv1d as SparseConv1d,
    SparseConv2d as SparseConv2d,
    SparseLinear as SparseLinear,
    SparseModel as SparseModel,
    export_onnx as export_onnx,
    load as load,
    plan as plan,
    save as save,
    to_dense as to_dense,
    to_sparse as to_sparse,
)
from .topology import (
    METHODS as METHODS,
    SET as SET,
    Connections as Connections,
    GradualPruning as GradualPruning,
    Layers as Layers,
    Method as Method,
    RigL as RigL,
    RigLInverted as RigLInverted,
    Static as Static,
    Topology as Topology,
    View as View,
    attach as attach,
    drop_and_grow as drop_and_grow,
    probe_gradient as probe_gradient,
    propose as propose,
    register_method as register_method,
)
from .train import (
    cross_entropy as cross_entropy,
    fit as fit,
)

__version__: str
