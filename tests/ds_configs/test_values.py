"""`check` calls nothing good that a run could not do: numbers that contradict each other, names and folders that do not exist."""

import json
from dataclasses import asdict

import pytest
import torch

from ds_configs.__main__ import main
from ds_configs.overrides import DATA_WITHOUT_EFFECT
from model.gpt import GPT
from model.hugging_face.conversion import to_folder
from tests.data.stores import character_tokenizer
from tests.tiny_models import tiny
from training.run_folder.monitors import OWNER

QUICKSTART = "ds_configs/quickstart.json"
LARGE = ("training.steps", "training.watchdog_seconds", "training.eval_batches", "model.vocab_size", "train_batch_size")

pytestmark = pytest.mark.usefixtures("at_the_root")


def check(capsys, *overrides: str, file: str = QUICKSTART) -> tuple[int, list[str]]:
    """Exit code, and every line that is said of the mistake."""
    code = main(["check", file, "run.name=x", *overrides])
    return code, [line for line in capsys.readouterr().err.splitlines() if " configurations are " not in line]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.params.betas=[0.9,1.5]", "command line: optimizer.params.betas[1] = 1.5; it must be a number from 0 to below 1."),
        ("optimizer.params.betas=[0.9,1]", "command line: optimizer.params.betas[1] = 1; it must be a number from 0 to below 1."),
        ("optimizer.params.betas=[-0.1,0.9]", "command line: optimizer.params.betas[0] = -0.1; it must be a number from 0 to below 1."),
        ("optimizer.params.betas=0.9", "command line: optimizer.params.betas = 0.9, which is written with a fraction; it must be a list"),
        ("scheduler.params.cos_min_ratio=7", "command line: scheduler.params.cos_min_ratio = 7; it must be a number from 0 to 1."),
        ("scheduler.params.warmup_min_ratio=1.01", "warmup_min_ratio = 1.01; it must be a number from 0 to 1."),
        ('scheduler.params={"cos_min_ratio":"x"}', 'cos_min_ratio = "x", which is a string; it must be a number'),
        ("run.seed=-1", "command line: run.seed = -1; it must be 0 or more and below 2**63."),
        ("run.seed=9223372036854775808", "run.seed = 9223372036854775808; it must be 0 or more and below 2**63."),
        ("data.shuffle_seed=-1", "data.shuffle_seed = -1; it must be 0 or more and below 2**63."),
        ("data.corpus=honglomeng", 'data.corpus = "honglomeng" is not known. Did you mean "hongloumeng"?'),
        (
            'data={"corpus":null,"sources":[{"corpus":"revers"}],"chapters":null}',
            'data.sources[0].corpus = "revers" is not known. Did you mean "reverse"?',
        ),
        ("model.hidden_size=wide", 'command line: model.hidden_size = "wide", which is a string; it must be an integer.'),
        ("model.hidden_size=null", "model.hidden_size is missing; it must be an integer."),
        ("model.num_heads=many", 'command line: model.num_heads = "many", which is a string; it must be an integer.'),
        (f"model.dropout=1{'0' * 400}", "command line: model.dropout is too large for a number. Write a finite one."),
        ("model.dropout=1e400", "command line: model.dropout is too large for a number. Write a finite one."),
        ("model.num_layers=10000000000000000000", "model.num_layers = 10000000000000000000; it must be at most 100000."),
        ("model.from=nowhere", "model.from: nowhere: no such folder. Fetch it, or name another Hugging Face folder."),
        (
            "pipeline.partition=flop",
            'command line: pipeline.partition = "flop" is unknown. Use flops, measured, uniform, parameters, or type:<',
        ),
        ("pipeline.partition=type:(", 'command line: pipeline.partition = "type:(" is no regular expression after "type:": '),
        ("data.seq_length=512", "command line: data.seq_length = 512 is longer than model.max_seq_length = 256."),
        ("bf16.enabled=true data_types=null", 'data_types.grad_accum_dtype = null; it must be "fp32"'),
        (
            "zero_optimization.stage=2",
            "command line: zero_optimization.stage = 2; it must be 1. With a pipeline, stages 2 and 3 cannot work",
        ),
        ("run.name=a/b", "command line: run.name = 'a/b'; it names a folder: "),
        ("run.name=3", """command line: run.name = 3; it must be a string. Put it in quotes; on a command line: 'run.name= "3"'."""),
        ("data.path=2024", """on a command line: 'data.path= "2024"'."""),
        ("training.sample_temperature=1e-45", "training.sample_temperature = 1e-45; it must be 0 (greedy) or from 0.01 to 100."),
        ('data.clean=[{"rule":"min_length","char":1}]', 'command line: unknown key "data.clean[0].char". Did you mean "chars"?'),
        (
            'data.corpus=null data.chapters=null data.sources=[{"path":"a.txt","clean":[{"rule":"min_length","chars":0}]}]',
            "command line: data.sources[0].clean[0].chars = 0; it must be an integer of 1 or more.",
        ),
        ('data.clean=[{"rule":"unicod"}]', 'data.clean[0].rule = "unicod" is not a rule. Did you mean "unicode"?'),
        (
            'scheduler={"type":"WarmupLR","params":{"cos_min_ratio":null,"warmup_min_ratio":null,"warmup_min_lr":1,"warmup_max_lr":0.1}}',
            "scheduler.params.warmup_min_lr = 1 is above warmup_max_lr = 0.1. Swap them.",
        ),
        (
            'optimizer=null optimizer={"type":"AdamW","params":{"foreach":false}}',
            "command line: optimizer.params.foreach is torch's and needs torch_adam = true. Set that, or remove it.",
        ),
        ("optimizer.params.torch_adam=false optimizer.params.foreach=true", "optimizer.params.foreach is torch's and needs torch_adam"),
        ('optimizer=null optimizer={"type":"Adam","params":{"amsgrad":true}}', "optimizer.params.amsgrad is torch's and needs torch_adam"),
        (
            'optimizer=null optimizer={"type":"AdamW","params":{"torch_adam":true,"foreach":true,"fused":true}}',
            "command line: optimizer.params.foreach and fused cannot both be true. Remove one of them.",
        ),
        (f"run.name={'a' * 256}", "the first a letter, digit or _, at most 255 bytes."),
        ("run.description=\udcba\udcec", r"run.description = '\udcba\udcec' is no text: it has bytes that are not UTF-8, half a character"),
        ("training.sample_prompt=\udcba", r"training.sample_prompt = '\udcba' is no text"),
        *((f"{key}=1{'0' * 400}", f"{key} is too large for an integer. Write a smaller one.") for key in LARGE),
        (r'run.directory="a\u0000b"', r"run.directory = 'a\x00b' is no text"),
        (
            'optimizer=null optimizer={"type":"SGD","params":{"lr":0.1,"nesterov":true}}',
            "optimizer.params.nesterov = true needs a momentum above 0 and no dampening.",
        ),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_line_and_exit_code_2(capsys, override, said):
    code, lines = check(capsys, *override.split(" "))
    assert code == 2
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert lines[0].endswith((".", "?"))
    assert not lines[0].endswith("..")


def test_a_part_is_refused_for_being_one_and_for_nothing_else(capsys):
    assert check(capsys, file="ds_configs/parts/engine/pipeline.json") == (
        2,
        ["ds_configs/parts/engine/pipeline.json: is a part, which runs inherit, and cannot be run. Name a file outside parts/."],
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("quickstart", "quickstart.json"),
        ("quickstart.json", "quickstart.json"),
        ("ds_configs/quickstrat.json", "quickstart.json"),
        ("configs/quickstart.json", "quickstart.json"),
        ("poetry_gpt2_muon", "ablations/poetry_gpt2_26m_muon.json"),
    ],
)
def test_a_shipped_configuration_is_named_wherever_it_was_looked_for(capsys, typed, meant):
    assert check(capsys, file=typed) == (2, [f"{typed}: no such file. Did you mean ds_configs/{meant}?"])


def test_where_no_name_is_like_it_the_shipped_configurations_are_listed(capsys, monkeypatch, tmp_path):
    shipped = "ds_configs holds: hongloumeng_500m.json, opt_125m_depth_down_10.json, "
    for typed, said in (
        ("nowhere.json", "no such file. "),
        ("configs/x", "no such file. There is no folder configs. "),
        ("docs", "is a folder"),
    ):
        code, lines = check(capsys, file=typed)
        assert (code, len(lines)) == (2, 1)
        assert lines[0].startswith(f"{typed}: {said}")
        assert shipped in lines[0]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    (tmp_path / "mine.json").touch()
    assert shipped in check(capsys, file="a.json")[1][0]
    assert check(capsys, file="../a.json") == (2, [f"../a.json: no such file. {tmp_path} holds: mine.json."])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "scheduler.params.warmup_num_steps=101",
            "warmup_num_steps = 101 and the run has 100 steps: it ends before the learning rate is at its peak",
        ),
        (
            'scheduler={"type":"WarmupDecayLR","params":{"warmup_num_steps":5,"warmup_min_ratio":null,"cos_min_ratio":null}}',
            "WarmupDecayLR sets the learning rate itself (scheduler.params.warmup_max_lr = 0.001, which is DeepSpeed's default), so "
            "optimizer.params.muon_lr = 0.006 and optimizer.params.adam_lr = 0.002 are not used.",
        ),
        (
            'scheduler={"params":{"warmup_num_steps":null}}',
            "scheduler.params.warmup_num_steps = 1000, which is DeepSpeed's default, and the run has 100 steps",
        ),
        ("optimizer.params.adam_lr=null", "optimizer.params.adam_lr not set: the learning rate is DeepSpeed's default."),
        ('optimizer=null optimizer={"type":"AdamW"}', "optimizer.params.lr not set: the learning rate is DeepSpeed's default."),
        ("optimizer.params.torch_adam=null", "optimizer.params.torch_adam is not true: DeepSpeed compiles an Adam of its own"),
        ('training.spike={"factor":2}', "training.spike.window_steps = 100 and the run has 100 steps"),
        (
            'scheduler=null scheduler={"type":"OneCycle","params":{"cycle_min_lr":0.01,"cycle_max_lr":0.01,"cycle_min_mom":0.7}} '
            'optimizer.params={"muon_lr":0.01,"adam_lr":0.01}',
            "scheduler.params.cycle_min_mom is not used: OneCycle moves the betas of AdamW and Adam only. Remove it.",
        ),
        ("csv_monitor.output_path=curves", "csv_monitor is off, whatever else it says, as csv_monitor.enabled is not set."),
        ("wandb.project=novel", "wandb is off, whatever else it says, as wandb.enabled is not set. Set it true or false."),
        (
            "prescale_gradients=true gradient_predivide_factor=2",
            "gradient_predivide_factor = 2 is not used with prescale_gradients = true.",
        ),
        ("tensorboard.job_name=novel", "tensorboard.job_name = novel is not used without tensorboard.output_path"),
        (
            'model.initialize={"method":"folder","folder":"nowhere"}',
            "model.initialize.folder = nowhere: no such folder. Fetch it before the run.",
        ),
        ('data.tokenizer={"kind":"existing","path":"nowhere","vocab_size":null}', "data.tokenizer.path = nowhere: no such file or folder."),
        (f'data={{"corpus":null,"path":"{"春" * 100}"}}', ": nothing there. The preparation needs it."),  # Longer than a name may be.
        ('data={"corpus":null,"path":"nowhere/*.txt"}', "data.path = nowhere/*.txt: nothing there. The preparation needs it."),
    ],
)
def test_what_a_right_configuration_lacks_or_does_not_reach_is_said_with_exit_code_1(capsys, override, said):
    assert main(["check", QUICKSTART, "run.name=x", *override.split(" ")]) == 1
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()[:2]
    assert first == f"{QUICKSTART}: right, but"
    assert said in second
    assert captured.err == "1 of 1 configurations are right, but see what is said of them.\n"


def test_curves_that_a_start_would_refuse_to_write_are_named_by_check(capsys, tmp_path):
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / OWNER).write_text(str(tmp_path), encoding="utf-8")
    monitor = f'csv_monitor={{"enabled":true,"output_path":"{tmp_path}","job_name":"curves"}}'
    assert main(["check", QUICKSTART, "run.name=x", monitor]) == 1
    assert f"  csv_monitor writes to {tmp_path}/curves, where the curves of the run in {tmp_path} are" in capsys.readouterr().out


def test_what_a_schedule_puts_in_the_place_of_the_optimizers_parameters_is_said(capsys):
    own = ["muon_lr", "adam_lr", "momentum"]
    plain = [f"optimizer.params.{key}=null" for key in own] + ["optimizer.type=AdamW", "optimizer.params.lr=0.01"]
    plain += [f"scheduler.params.{key}=null" for key in ("warmup_min_ratio", "cos_min_ratio", "warmup_num_steps", "warmup_type")]
    cycle = ["scheduler.type=OneCycle", "scheduler.params.cycle_min_lr=0.001", "scheduler.params.cycle_max_lr=0.01"]
    betas = ["optimizer.params.betas=[0.95,0.99]"]
    assert main(["check", QUICKSTART, "run.name=x", *plain, *cycle, *betas]) == 1
    _, said, *others = capsys.readouterr().out.splitlines()
    assert "sets the second to 0.99, so optimizer.params.betas = [0.95, 0.99] is not used" in said
    assert "sets the learning rate" not in said + "".join(others), "both say the same rate"
    unset = ["optimizer.params.betas=null", "scheduler.params.cycle_min_mom=0.7"]
    assert check(capsys, *plain, *cycle, *unset) == (0, []), "nothing that the optimizer was told"
    for right in (["scheduler.type=WarmupLR", "scheduler.params.warmup_num_steps=10"], [*cycle, "scheduler.params.cycle_momentum=false"]):
        assert check(capsys, *plain, *right, *betas) == (0, [])


def test_a_warm_up_as_long_as_the_run_and_an_unknown_length_are_nothing_to_mention(capsys):
    assert check(capsys, "scheduler.params.warmup_num_steps=100") == (0, [])
    assert check(capsys, "scheduler.params.warmup_num_steps=20000", "training.steps=null", "training.epochs=3") == (0, [])


def test_a_dataset_of_the_hub_is_not_said_to_be_missing(capsys):
    assert check(capsys, 'data={"corpus":null,"path":"hub:nobody/nothing"}') == (0, [])


def test_tokens_made_elsewhere_that_are_not_here_are_said(capsys, tmp_path):
    pair = tmp_path / "text"
    character_tokenizer(tmp_path / "tokenizer")
    store = f'data={{"corpus":null,"chapters":null,"validation":{{"last_documents":null,"ratio":0.1}},"store":"{pair}"}}'
    given = [store, f'data.tokenizer={{"kind":"existing","path":"{tmp_path / "tokenizer"}","vocab_size":null}}']
    assert main(["check", QUICKSTART, "run.name=x", *given]) == 1
    assert f"data.store = {pair}: there is no {pair}.bin. The preparation needs it." in capsys.readouterr().out
    pair.with_suffix(".bin").touch()
    assert main(["check", QUICKSTART, "run.name=x", *given]) == 0


def test_a_model_whose_runs_can_only_be_trained_is_said_before_it_is_trained(capsys):
    assert main(["check", "ds_configs/ablations/quickstart_rotary.json"]) == 1
    said = capsys.readouterr().out
    assert "inference.generate, serve and evaluate will not read the run: the gpt2 format cannot hold this model: model.position" in said


def test_keys_of_data_without_effect_on_what_a_run_reads_may_be_overridden_when_it_goes_on(capsys):
    values = {"directory": "elsewhere", "num_workers": "2", "max_bad_ratio": "0.01"}
    assert values.keys() == set(DATA_WITHOUT_EFFECT)
    assert main(["check", QUICKSTART, *(f"data.{key}={value}" for key, value in values.items())]) == 0
    for others in (["data.seq_length=128"], ['data={"num_workers":2}'], ["model.num_layers=2"]):
        assert main(["check", QUICKSTART, "data.num_workers=2", *others]) == 2
        assert "makes another run" in capsys.readouterr().err


def test_a_folder_that_does_not_fit_is_found_by_check_without_torch(capsys, tmp_path):
    config = tiny("gpt2", norm_eps=1e-6)
    to_folder(GPT(config, seed=0), config, tmp_path, "gpt2")
    start = f'model.initialize={{"method":"folder","folder":"{tmp_path}"}}'
    code, (line,) = check(capsys, start)
    assert code == 2
    assert line.startswith(f"{QUICKSTART}: model.initialize: {tmp_path}/config.json: hidden_size = 24 (model.hidden_size = 256), ")
    assert "norm_eps = 1e-06 (model.norm_eps = 1e-05)" in line


def test_a_folder_of_another_vocabulary_is_found_by_check(capsys, tmp_path):
    config = tiny("gpt2")
    to_folder(GPT(config, seed=0), config, tmp_path, "gpt2")
    values = {**asdict(config), "vocab_size": 5000, "initialize": {"method": "folder", "folder": str(tmp_path)}}
    code, (line,) = check(capsys, f"model={json.dumps(values)}", f"data.seq_length={config.max_seq_length}")
    assert code == 2
    assert f"{tmp_path}/config.json: vocab_size = {config.vocab_size} (model.vocab_size = 5000). Give the model the folder's" in line


def test_every_seed_that_is_let_through_draws_weights():
    config = tiny("gpt2")
    last = GPT(config, seed=2**63 - 1).state_dict()
    assert not torch.equal(last["0.weight"], GPT(config, seed=2**63 - 2).state_dict()["0.weight"])


def test_a_tokenizer_that_is_here_and_does_not_fit_is_wrong(capsys, tmp_path):
    section = {**character_tokenizer(tmp_path), "vocab_size": None, "add_bos": True}
    (tmp_path / "tokenizer_config.json").unlink()

    code, (line,) = check(capsys, f"data.tokenizer={json.dumps(section)}")

    assert code == 2
    assert line.startswith(f"{QUICKSTART}: data.tokenizer: {tmp_path}/tokenizer.json: no begin-of-text token is named, but")
