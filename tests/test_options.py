import re

import pytest

import evaluate
import guidance
import sample
import train
from toy import run as toy


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "9", "--minutes", "1"], "--steps and --minutes are two ways to say when to stop: give one"),
        (["audio", "--fakes", "generated", "--warmup", "9"], "--warmup, --fakes: for the discriminator, not for"),
        (["video", "--low", "1"], "--low is a share of the clips"),
        (["audio", "--motion", "5"], "--motion is a weight of at least 0, for train.py video"),
        (["video", "--motion", "-1"], "--motion is a weight of at least 0, for train.py video"),
        (["video", "--loud", "5"], "--loud is a weight of at least 0, for train.py audio"),
        (["audio", "--loud", "-1"], "--loud is a weight of at least 0, for train.py audio"),
        (["--pairing", "index"], "--pairing is of --video-model and --audio-model, which are not given"),
        (["--video-model", "a", "--audio-model", "b", "--data", "f", "--bases", "c"], "--bases are this project's own"),
        (["--video-model", "a", "--audio-model", "b", "--data", "f", "--low", "0.5"], "--low is in noise levels of"),
        (["--video-model", "a", "--data", "f"], "--video-model and --audio-model go together"),
        (["--hold-out", "0.1"], "xylophone has none"),
        (["--hold-out", "1", "--data", "f"], "from 0 up to, but not 1"),
        (["--size", "40"], "--size must be a multiple of 16"),
        (["--batch", "6"], "--batch must be a multiple of 4"),
        (["--bach", "8"], "there is no option --bach, but --batch"),
        (["--xyz"], "there is no option --xyz; --help lists them"),
    ],
)
def test_options_of_training_that_do_not_go_together_are_named(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--score", "a.mp4", "--joint", "run"], "--score judges the files it is given"),
        (["--hold-out", "0.1"], "--hold-out is a share, below 1, of the files of --data FOLDER"),
        (["--wieght", "1"], "there is no option --wieght, but --weight"),
        (["--weight", "1", "2", "3", "4"], "--weight one to three numbers"),
        (["--climb", "1.5"], "1.5 is no noise level: a number from 0 to 1"),
        (["--climb", "low"], "low is no noise level"),
    ],
)
def test_options_of_evaluation_that_do_not_go_together_are_named(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.parse(argv)
    assert message in capsys.readouterr().err


def test_a_prompt_scale_without_a_prompt_is_an_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        sample.parse(["--prompt-scale", "1", "2"])
    assert "--prompt-scale is of --prompt, which is not given" in capsys.readouterr().err
    assert sample.parse(["--prompt", "a bell"]).prompt_scale == [7.5, 2.5]


def test_steps_climb_where_a_clip_is_known_to_have_one_right_detail_and_not_for_a_prompt(capsys):
    assert sample.parse([]).climb == evaluate.parse([]).climb == guidance.CLIMB
    assert sample.parse(["--climb", "0"]).climb == sample.parse(["--prompt", "a bell"]).climb == 0
    with pytest.raises(SystemExit, match="2"):
        sample.parse(["--prompt", "a bell", "--climb", "0.2"])
    assert "--climb is for this project's own base models" in capsys.readouterr().err


@pytest.mark.parametrize("parse", [train.parse, sample.parse, evaluate.parse, toy.main])
def test_help_has_examples_and_says_what_each_option_is_when_it_is_not_given(parse, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    text = capsys.readouterr().out
    before, after = text.split("\noptions:\n")
    assert before.count("    python ") >= 3
    listed = " ".join(after.split()).split(" --")[1:]
    without = ("resume", "video-model", "audio-model", "given", "keep", "prompt ", "joint", "score", "compile", "steps")
    for option in listed:
        assert option.startswith((*without, "device {cpu}")) or re.search("default|here|show this help", option), option


def test_a_run_names_the_next_command():
    for model, following in (
        ("discriminator", "python sample.py --run runs/discriminator"),
        ("joint", "python evaluate.py --joint runs/joint"),
        ("audio", "cp runs/audio/model.pt BASES/audio.pt"),
    ):
        args = train.parse([model])
        assert train.next_command(args, stopped=False).startswith(following)
        assert train.next_command(args, stopped=True) == f"python train.py --resume runs/{model}"
