"""What ``python -m sdslab.texture`` can be told."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from sdslab.shell.named_inputs import is_named_object


def _option(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


GuidanceName = str  # one of `GUIDANCES`, or MODULE:NAME
# What each needs; the first of those that need it is meant where no guidance is named.
GUIDANCES = {
    "exemplar": "--exemplar",
    "deepfloyd": "--prompt",
    "stable-diffusion": "--prompt",
    "degenerate": "--target",
    "none": "--exemplar",
}
MapName = Literal["albedo", "roughness", "metallic", "normal"]
WeightingName = Literal["x0_unit", "x0_castex", "epsilon_unit", "epsilon_dreamfusion"]


@dataclass(frozen=True)
class Subject:
    """What is textured, and towards what: give a prompt, an exemplar or a target."""

    mesh: Annotated[str, tyro.conf.Positional, _option("MESH", "apple")] = "apple"
    """An OBJ, GLB, glTF, PLY, STL or OFF file, or the name of a built-in mesh."""
    prompt: Annotated[str | None, _option("TEXT", "none")] = None
    """What the object should look like; needs a diffusion model's weights."""
    exemplar: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("PHOTO", "gravel; repeatable")
    ] = ()
    """A photo whose texture the object should have: a file, or the name of a photograph that
    scikit-image ships. TAG=PHOTO gives it a tag for --tag. Needs no weights and no GPU."""
    target: Annotated[str | None, _option("TARGET", "none")] = None
    """A known material to recover: a textured GLB or OBJ of the same mesh, a folder of maps, or a
    picture for its albedo (a file, or the name of a photograph that scikit-image ships)."""
    guidance: Annotated[
        GuidanceName | None, _option("NAME", "deepfloyd, exemplar or degenerate, by what is given")
    ] = None
    """exemplar, deepfloyd, stable-diffusion, degenerate (the paper's Eq. 3, for --target), or none:
    the exemplar as --init lays it on the object, by default projected along the three axes. Or
    MODULE:NAME, a function of your own that makes a denoiser or a guide (examples/own_guide.py)."""
    init: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="INIT",
            aliases=("--init-from",),
            help_behavior_hint="(default: grey)",
        ),
    ] = None
    """Start from grey, from random albedo, from the mesh file's own maps ("source"), from the
    exemplar projected along the axes ("triplanar"), or from an earlier result: a GLB or OBJ of the
    same mesh, a run's folder, a folder of maps, or a picture."""
    unwrap: Literal["auto", "always", "never"] = "auto"
    """Make texture coordinates: where the file's own are no valid atlas, always, or never."""
    up: Annotated[
        Literal["x", "-x", "y", "-y", "z", "-z"] | None, _option("{x,-x,y,-y,z,-z}", "y")
    ] = None
    """Which of the file's axes points up; scans and models for printing mostly have z. Views, what
    prompts say of them, and --orient follow it. The result keeps the file's own axes."""
    smooth: bool = False
    """Shade smoothly even where the file has normals of its own."""


@dataclass(frozen=True)
class Exemplar:
    """How an exemplar's texture lies on the object."""

    exemplar_scale: float = 1.5
    """World size of the photo's height; the object's largest extent is 2."""
    orient: Literal["up", "free", "flow"] = "up"
    """Whether the photo's up follows the object's, any direction will do, or the direction that
    bends least over the whole form."""
    stage_two: Literal["mode", "sr-sds"] = "mode"
    """mode shows the photo's own pixels where stage I has what is most like them; sr-sds sharpens
    stage I's result fourfold by super-resolution."""
    material: Literal["auto", "albedo-only"] = "auto"
    """Estimate roughness and bumps from the albedo where no map is given, or leave them constant.
    The albedo itself is matched without light."""
    exemplar_normal: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("MAP", "none; repeatable")
    ] = ()
    """The photo's normal map (+Y up), laid out together with it: one for each --exemplar."""
    exemplar_roughness: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("MAP", "none; repeatable")
    ] = ()
    """The photo's roughness map: one for each --exemplar."""
    exemplar_mask: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("PICTURE", "none; repeatable")
    ] = ()
    """Bright where the photo may be used: one for each --exemplar. Without one, a photo is used
    where it is opaque."""
    tag: Annotated[str | None, _option("TAG", "none: all alike")] = None
    """The exemplar, of several, that the object should look like most: --exemplar
    moss=moss.jpg --exemplar bark=bark.jpg --tag moss."""
    tag_guidance: float = 3.0
    """How strongly the tag leads: 0 not at all, 1 alone, more away from the others."""


@dataclass(frozen=True)
class Model:
    """The diffusion model behind a prompt."""

    preset: Literal["fast", "castex", "quality"] = "castex"
    """fast: IF-I-M, stage I only; castex: the paper's models and numbers, but for what
    docs/castex.md lists; quality: ours."""
    model: Annotated[str | None, _option("ID or FOLDER", "the preset's")] = None
    """Stage I's pipeline: a hub id, or a local folder in diffusers' format."""
    sr_model: Annotated[str | None, _option("ID or FOLDER", "the preset's")] = None
    """Stage II's super-resolution pipeline, or "none" to end with stage I."""
    negative_prompt: Annotated[str, _option("TEXT", "none")] = ""
    """What guidance leads away from."""
    view_names: Annotated[
        tuple[str, str, str, str, str] | None,
        _option("FRONT SIDE BACK TOP BOTTOM", "front view, side view, …"),
    ] = None
    """What is said, after a comma, of the side that a view shows; five empty ones say nothing."""
    embeddings: Annotated[str | None, _option("FILE", "none")] = None
    """Prompt embeddings as safetensors, in place of the text encoder."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the models; auto is float16 on CUDA and float32 elsewhere."""
    low_memory: bool = False
    """Run the guided and the unguided half one after the other."""
    offload: bool = False
    """Keep the UNet's weights on the CPU, and copy them to the GPU once a step."""
    compile: bool = False
    """Compile the UNet (torch.compile): a minute first, then faster steps."""
    graph: bool = False
    """Record what follows visibility as CUDA graphs in the first steps, and replay them."""


@dataclass(frozen=True)
class Distillation:
    """How the gradient is made of what a prompt's model says."""

    objective: Annotated[str, _option("NAME|MODULE:NAME", "sds")] = "sds"
    """What stage I distils: sds, csd, csd_annealed, nfsd, bridge, ism, sdi, hifa, rfds, rfds_rev,
    each with its own scale, t and weighting (docs/objectives.md), or your own function."""

    guidance_scale: Annotated[float | None, _option("S", "the preset's")] = None
    """Scale s of classifier-free guidance in stage I: ε_u + s (ε_c − ε_u)."""
    sr_guidance_scale: Annotated[float | None, _option("S", "the preset's")] = None
    """Scale of stage II."""
    perp_neg: Annotated[float, _option("W", "0, off")] = 0.0
    """Weight of the other sides' prompts as perpendicular negatives (Perp-Neg), in stage I."""
    weighting: Annotated[WeightingName | None, _option("NAME", "the preset's")] = None
    """w(t), named with its form: x0_unit, x0_castex, epsilon_unit or epsilon_dreamfusion."""
    timesteps: Annotated[tuple[int, int] | None, _option("LOW HIGH", "the preset's")] = None
    """Draw t uniformly from LOW to HIGH − 1 throughout, instead of from an annealed range."""
    timestep_per: Annotated[
        Literal["step", "picture"] | None, _option("{step,picture}", "the preset's")
    ] = None
    """One t for all pictures of a step, as CasTex has it, or one for each."""
    x0_bound: Annotated[
        Literal["clamp", "dynamic", "none"] | None, _option("{clamp,dynamic,none}", "the preset's")
    ] = None
    """Clamp x̂_0 to [−1, 1], threshold it as DeepFloyd's sampler does, or leave it; pixels only."""
    gradient_clamp: Annotated[float | None, _option("G", "none")] = None
    """Clamp every element of the gradient to [−G, G]."""
    sr_condition: Annotated[
        Literal["castex", "pipeline"] | None, _option("{castex,pipeline}", "the preset's")
    ] = None
    """How stage I's picture is shown to stage II: resized and noised as in the paper's code, or as
    in diffusers' own pipeline."""


@dataclass(frozen=True)
class Optimization:
    """How the material is optimised."""

    texture_size: int = 1024
    """Height and width of the maps, a power of two."""
    steps: Annotated[int | None, _option("N", "300 with a target, else the preset's")] = None
    """Optimisation steps, of stage I where there are two."""
    sr_steps: Annotated[int | None, _option("N", "the preset's")] = None
    """Optimisation steps of stage II."""
    views: Annotated[int | None, _option("N", "4 with a target, else the preset's")] = None
    """Pictures a step."""
    learning_rate: Annotated[float | None, _option("RATE", "0.025 with a target")] = None
    """Adam's learning rate at the first step."""
    frozen: Annotated[
        tuple[MapName, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            aliases=("--freeze",), metavar="MAP", help_behavior_hint="(default: none; repeatable)"
        ),
    ] = ()
    """Keep this map as it starts; repeatable."""
    disable: Annotated[
        tuple[MapName, ...], tyro.conf.UseAppendAction, _option("MAP", "none; repeatable")
    ] = ()
    """Leave this map out: flat normals, no metal, roughness 0.5, white; repeatable."""
    parameterization: Annotated[str, _option("texels|dip|MODULE:NAME", "texels")] = "texels"
    """Explicit texels, Paint-it's deep image prior, or your own function's `Parameterization`."""
    seed: int = 0
    """Seed of views, lights, backgrounds, timesteps and noise."""

    @property
    def held(self) -> tuple[MapName, ...]:
        """Maps that are not optimised."""
        return tuple(dict.fromkeys((*self.frozen, *self.disable)))


@dataclass(frozen=True)
class Rendering:
    """How pictures are made."""

    render_size: Annotated[int | None, _option("PIXELS", "256, or 512 with a prompt")] = None
    """Height and width of a picture."""
    cameras: Literal["castex", "wide"] = "castex"
    """Random views: the paper's, or a wider choice of angles, distances and fields of view."""
    light: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("LIGHT", "studio and sky; repeatable")
    ] = ()
    """studio, sky, constant, white, or a panorama (.hdr, .exr, a picture); each step takes one."""
    lamp: Literal["none", "point", "directional"] = "none"
    """A small light besides, somewhere else in each picture."""
    turn_light: Literal["picture", "step", "never"] = "picture"
    """Turn the light at random: for each picture anew, once a step as the paper does, or never."""
    light_intensity: Annotated[tuple[float, float], _option("LOW HIGH", "0.6 1.4")] = (0.6, 1.4)
    """Multiply each picture's light by a random number from LOW to HIGH; the paper's is 2 2."""
    fixed_light: bool = False
    """Do not turn and dim the light at random: --turn-light never --light-intensity 1 1."""
    unlit: bool = False
    """Render the albedo alone, without light."""
    background: Literal["random", "shared", "white", "black", "grey", "checker"] = "random"
    """Behind the object; random is a colour for each picture, shared one for all of a step, as the
    paper has it."""
    supersampling: Literal[1, 2, 4] = 1
    """Sub-pixels along each side of a pixel."""
    color_mode: Literal["srgb", "castex"] = "srgb"
    """Shade in linear light, or as the paper's code does: without any conversion."""
    renderer: Literal["auto", "cpu", "triton", "nvdiffrast"] = "auto"
    """The rasteriser; auto is cpu on a CPU, triton on any GPU. nvdiffrast is for NVIDIA's, is
    installed apart and may not be used commercially."""
    held_out: Literal["castex", "six"] = "castex"
    """Views that the result is measured from: the paper's 20, or six."""


@dataclass(frozen=True)
class Output:
    """What is written, and where it is computed."""

    out: Annotated[str | None, _option("FOLDER", "runs/MESH-WHAT")] = None
    """Folder for the results."""
    fresh: Annotated[bool, tyro.conf.arg(aliases=("--overwrite",))] = False
    """Start over, also where the folder holds another run."""
    resume: Annotated[str | None, _option("RUN", "none")] = None
    """Go on with the run in this folder, from anywhere, with its own settings."""
    accept_code_change: bool = False
    """Go on with a run that another version of this program began; the record says so."""
    preview_every: Annotated[int | None, _option("N", "4 pictures spread over each stage")] = None
    """Steps between pictures of the state, in previews/; 0 makes none."""
    checkpoint_every: Annotated[float, _option("SECONDS", "60")] = 60.0
    """Seconds between checkpoints, from which the same command goes on."""
    live: bool = False
    """Show the run as it goes on a page of this machine, which can also pause, step and save it."""
    live_port: Annotated[int, _option("PORT", "8080")] = 8080
    """Port of that page; 0 takes any that is free."""
    exr: bool = False
    """Write the maps as 32-bit EXR as well."""
    turntable: Annotated[int, _option("FRAMES", "48")] = 48
    """Frames of the turntable; 0 makes none."""
    picture_size: Annotated[int, _option("PIXELS", "384")] = 384
    """Height and width of the turntable and front.png; sheets and previews show 384 at most."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    threads: Annotated[int | None, _option("N", "torch's own choice")] = None
    """CPU threads."""


@dataclass(frozen=True)
class Arguments:
    """Textures a mesh by score distillation: writes a GLB, its maps and pictures.

    Examples:
      python -m sdslab.texture                                a try, in a minute
      python -m sdslab.texture cow.obj --exemplar moss.jpg    like a photograph
      python -m sdslab.texture cow.obj --prompt "a clay cow"  after words
      python -m sdslab.texture apple --target coffee          a material regained
      python -m sdslab.texture --resume runs/cow-moss         where it stopped
      python -m sdslab.texture doctor                         what can run here

    Most runs need no more than these options; all of them follow, in groups:
      MESH               what is textured: a file, or apple, sphere or torus
      --exemplar PHOTO   the photograph that it should look like
      --exemplar-scale S size of the photograph on the object
      --prompt TEXT      what it should look like, in words
      --out FOLDER       where the results go
      --texture-size N   height and width of the maps
      --steps N          optimisation steps: fewer to try, more for quality
      --seed N           another seed, another result
      --live             a page that shows the run as it goes
      --resume RUN       go on with a run
      --device NAME      cpu, cuda, cuda:N or auto
    """

    subject: tyro.conf.OmitArgPrefixes[Subject]
    exemplar: tyro.conf.OmitArgPrefixes[Exemplar]
    model: tyro.conf.OmitArgPrefixes[Model]
    distillation: tyro.conf.OmitArgPrefixes[Distillation]
    optimization: tyro.conf.OmitArgPrefixes[Optimization]
    rendering: tyro.conf.OmitArgPrefixes[Rendering]
    output: tyro.conf.OmitArgPrefixes[Output]

    @property
    def named_objects(self) -> dict[str, str]:
        """The user's own code that is to run, MODULE:NAME by its option."""
        named = {
            "--guidance": self.subject.guidance,
            "--objective": self.distillation.objective,
            "--parameterization": self.optimization.parameterization,
        }
        return {option: name for option, name in named.items() if name and is_named_object(name)}


@dataclass(frozen=True)
class DoctorArguments:
    """Says what this machine can run, its devices, packages and models, and what closes each gap.

    Examples:
      python -m sdslab.texture doctor
      python -m sdslab.texture doctor ./my-pipeline DeepFloyd/IF-I-M-v1.0
    """

    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, _option("MODEL ...", "the known models")
    ] = ()
    """Pipelines to look at: local folders, or ids on the hub."""


DEFAULT_EXEMPLAR = "gravel"
