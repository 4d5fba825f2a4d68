"""Benchmarks of `jaxspec bench`. Imports neither JAX nor models."""

from dataclasses import replace

from jaxspec.bench.description import Benchmark, Option

CHECKPOINT = Option(
    "checkpoint",
    "bundle folder with tokenizer/, prior/ and perhaps drafter/ and text_encoder/",
    metavar="DIR",
    default_text="fruits64, which comes with jaxspec",
)
MODELS = Option(
    "models",
    "models: default (--checkpoint), or published sizes with random weights: "
    "gpt-b, gpt-l, gpt-xl, ...",
    default=("default",),
    several=True,
    metavar="NAME",
)
DTYPE = Option(
    "dtype",
    "dtype of weights and caches",
    choices=("float32", "bfloat16"),
    default_text="bfloat16, on CPUs float32",
)
GRID = Option(
    "grid", "tokens along a side, for published sizes", int, default=24, least=3
)
REPEATS = Option(
    "repeats", "number of timed runs of each program", int, default=3, least=1
)
VARIANTS = Option(
    "variants",
    "variants of the decoder: xla, pallas, cudnn (attention over the cache), int8, "
    "stagesN (a cache that grows), joined by +",
    default=("xla",),
    several=True,
    metavar="VARIANT",
)
COMPILER_OPTIONS = Option(
    "compiler-options",
    "options of XLA, such as xla_gpu_enable_command_buffer=FUSION,CUBLAS,WHILE",
    default=(),
    several=True,
    metavar="KEY=VALUE",
    rare=True,
)
BATCHES = Option(
    "batches", "batch sizes in images", int, default=(1,), several=True, least=1
)
NUM = Option("num", "number of images", int, default=32, least=1)
BATCH = Option("batch", "batch size in images", int, default=8, least=1)
SEED = Option("seed", "seed of images and noise", int, default=0)
TREE = Option("tree", "tree, see `jaxspec generate --help`", metavar="TREE")
CFG_SCALES = Option(
    "cfg-scales",
    "CFG scales",
    float,
    default=(2.0,),
    several=True,
    metavar="S",
    cfg_scale=True,
)
# Options of benchmarks that time one program for several models.
SPEED = (CHECKPOINT, MODELS, DTYPE, GRID, REPEATS)
VARIANT_SPEED = (
    *SPEED[:-1], replace(REPEATS, default=5), VARIANTS, COMPILER_OPTIONS
)  # fmt: skip

GENERATE = Benchmark(
    "generate",
    summary="speculative decoding compared with plain decoding",
    description="Compares speculative with plain decoding for every combination of "
    "model, tree, batch size and CFG scale, in one process. Reports medians over "
    "repeats after a warm-up, without compilation, and the costs of a round.",
    example="Examples: jaxspec bench generate --trees chain-4 naive_extend_57 "
    "--batches 1 8 --cfg-scales 1 2 3 --num 64 --out docs/reports/fruits64; "
    "jaxspec bench generate --models gpt-xl --accept 4.2 --num 1 --out speed",
    options=(
        *SPEED,
        Option(
            "trees",
            "trees, see `jaxspec generate --help`",
            several=True,
            metavar="TREE",
            default_text="default of the device",
        ),
        CFG_SCALES,
        replace(BATCHES, default=(8,)),
        replace(NUM, default=64),
        SEED,
        Option("tokens", "tokens of each image", int, default_text="all", least=1),
        Option(
            "accept",
            "mean number of tokens that each round is forced to emit, regardless of "
            "its draft: times the loop without a trained drafter; images are "
            "meaningless",
            float,
            metavar="TOKENS",
            rare=True,
        ),
        Option(
            "attention",
            "attention over caches: XLA's, a kernel that reads only filled slots (GPU, "
            "TPU), or cuDNN's (NVIDIA, bfloat16)",
            default="xla",
            choices=("xla", "pallas", "cudnn"),
            rare=True,
        ),
        Option(
            "int8",
            "weight matrices in 8 bits with one scale per column: other images, of a "
            "slightly different model; speculative and plain ones are the same",
            bool,
            default=False,
            rare=True,
        ),
    ),
    measure="jaxspec.bench.generation:measure_generation",
    markdown="jaxspec.bench.generation:generation_markdown",
    plot="jaxspec.bench.generation:generation_plot",
    identity=("checkpoint", "batch", "cfg_scale", "tree_name", "tokens", "verifier"),
)
DECODE = Benchmark(
    "decode",
    summary="plain decoding compared with the memory bound and PyTorch",
    description="Times plain decoding, with and without noise and sampling, and the "
    "same decoder in PyTorch (eager and torch.compile) where that is installed. "
    "Reports the fraction of the memory bound that each achieves.",
    example="Example: jaxspec bench decode --models gpt-xl --batches 1 8 "
    "--variants xla pallas int8 --out decode",
    options=(
        *VARIANT_SPEED,
        replace(BATCHES, help="batch sizes in images; CFG doubles the sequences"),
        Option(
            "tokens",
            "maximum number of tokens of each image; 0 is all",
            int,
            default=0,
            least=0,
        ),
        Option("no-baselines", "do not measure PyTorch", bool, default=False),
    ),
    measure="jaxspec.bench.decode:measure_decode",
    markdown="jaxspec.bench.decode:decode_markdown",
    plot="jaxspec.bench.decode:decode_plot",
    identity=("model", "batch", "tokens", "method"),
)
VERIFY = Benchmark(
    "verify",
    summary="cost of verifying draft trees, in decode steps",
    description="Times forward passes over draft trees with caches filled by half an "
    "image, relative to a decode step, and whole rounds with fixed drafts, which add "
    "noise, verifier, commits and counters.",
    example="Example: jaxspec bench verify --models gpt-xl --nodes 26 64 "
    "--variants xla pallas --out verify",
    options=(
        *VARIANT_SPEED,
        BATCHES,
        Option("nodes", "tree sizes", int, default=(8, 26, 64), several=True, least=1),
        Option("passes", "passes in one timed program", int, default=16, least=1),
    ),
    measure="jaxspec.bench.verify:measure_verify",
    markdown="jaxspec.bench.verify:verify_markdown",
    plot="jaxspec.bench.verify:verify_plot",
    identity=("model", "batch", "method", "nodes"),
)
TRAIN = Benchmark(
    "train",
    summary="training steps: tokens per second, model-FLOPs utilization",
    description="Times steps of `jaxspec train` on random tokens, for a prior and for "
    "a block drafter.",
    example="Example: jaxspec bench train --models gpt-b --grid 16 --batch 64 "
    "--out train",
    options=(
        *SPEED,
        Option(
            "parts",
            "trained parts",
            default=("prior", "drafter"),
            several=True,
            choices=("prior", "drafter"),
            default_text="both",
        ),
        Option("batch", "sequences per step", int, default=16, least=1),
        Option("steps", "steps per timed run", int, default=3, least=1),
    ),
    measure="jaxspec.bench.training:measure_training",
    markdown="jaxspec.bench.training:training_markdown",
    plot="jaxspec.bench.training:training_plot",
    identity=("model", "part", "batch", "tokens"),
)
DRAFTERS = Benchmark(
    "drafters",
    summary="comparison of drafters on one target",
    description="Generates the same images with every combination of drafter, tree "
    "size, CFG scale and verifier. Reports tokens per call, drafting cost and speedup "
    "over plain decoding, and writes numbers, tables and a plot.",
    example="Example: jaxspec bench drafters --drafters own jacobi runs/eagle "
    "--nodes 16 57 --out docs/reports/drafters_cpu",
    options=(
        CHECKPOINT,
        Option(
            "drafters",
            "drafters, see `jaxspec generate --help`; folders are named by their last "
            "part",
            default=("own", "jacobi", "recycling", "ngrams", "prompt-lookup"),
            several=True,
            metavar="NAME",
        ),
        Option(
            "nodes", "tree sizes", int, default=(16, 57, 128), several=True, least=2
        ),
        replace(CFG_SCALES, default=(2.0, 3.0)),
        Option(
            "verifiers",
            "verifiers, see `jaxspec generate --help`",
            default=("coupled",),
            several=True,
            metavar="VERIFIER",
        ),
        Option(
            "prompts",
            "text models: file of passages separated by empty lines, one per sequence",
            metavar="FILE",
        ),
        Option(
            "length",
            "tokens of each sequence",
            int,
            default_text="the length of the model",
        ),
        NUM,
        replace(BATCH, default=16),
        Option("repeats", "number of timed runs", int, default=1, least=1),
        SEED,
    ),
    measure="jaxspec.bench.drafters:measure_drafters",
    markdown="jaxspec.bench.drafters:drafters_markdown",
    plot="jaxspec.bench.drafters:drafters_plot",
    identity=("drafter", "verifier", "cfg_scale", "nodes"),
    saves=True,
    resumes=True,
)
STREAM = Benchmark(
    "stream",
    summary="continuous batching compared with lockstep batches",
    description="Generates the same images in lockstep batches and with continuous "
    "batching, for jobs of equal and of different lengths.",
    example="Example: jaxspec bench stream --batch 8 --num 64 --out docs/reports/x",
    options=(
        CHECKPOINT,
        NUM,
        BATCH,
        Option("repeats", "number of timed runs", int, default=3, least=1),
        replace(SEED, help="seed of images, noise and lengths"),
        Option(
            "waits",
            "numbers of idle sequences before a refill",
            int,
            default=(1, 2),
            several=True,
            least=1,
        ),
        TREE,
    ),
    measure="jaxspec.bench.streaming:measure_streaming",
    markdown="jaxspec.bench.streaming:streaming_markdown",
)
PLAN = Benchmark(
    "plan",
    summary="fastest draft tree on this device",
    description="Counts the accepted ranks of the drafter, times rounds with trees of "
    "several sizes, and recommends the tree with the best expected speed.",
    example="Example: jaxspec bench plan --batch 8 --cfg-scale 3",
    options=(
        CHECKPOINT,
        Option("drafter", "drafter, as for jaxspec generate", default="own"),
        Option(
            "batch",
            "batch size in images",
            int,
            least=1,
            default_text="8",
        ),
        Option(
            "cfg-scale",
            "CFG scale",
            float,
            metavar="S",
            cfg_scale=True,
            default_text="the checkpoint's, else 2",
        ),
        Option(
            "num", "number of images to count acceptance on", int, default=16, least=1
        ),
        Option("depth", "most drafted tokens on a path", int, default=8, least=1),
        Option(
            "nodes",
            "tree sizes to compare",
            int,
            several=True,
            default_text="2 to 128",
        ),
    ),
    measure="jaxspec.bench.plan:measure_plan",
    markdown="jaxspec.bench.plan:plan_text",
    output="file",
)
HARDWARE = Benchmark(
    "hardware",
    summary="all speed benchmarks on this device, with a time limit",
    description="Runs the speed benchmarks one after another, most important first, "
    "and starts none after the time limit. Accelerators run GPT-XL with forced "
    "acceptance (XLA, Pallas, int8), training of GPT-B, and the default model; CPUs "
    "run small models.",
    example="Example: jaxspec bench hardware --out docs/reports/h100",
    options=(
        DTYPE,
        Option(
            "minutes",
            "time limit, after which no benchmark is started",
            float,
            default=5.5,
            metavar="N",
        ),
        REPEATS,
    ),
    measure="jaxspec.bench.hardware:measure_hardware",
    markdown="jaxspec.bench.hardware:hardware_markdown",
    saves=True,
)
BENCHMARKS = (GENERATE, DECODE, VERIFY, TRAIN, DRAFTERS, STREAM, PLAN, HARDWARE)
