import re
from dataclasses import replace

import pytest
import yaml
from readings import make_information

from ecsfusion.reporting.card import CardFacts, EncoderFacts, render_card
from ecsfusion.reporting.privacy import check_no_secrets, hub_name

TOKEN = "hf_" + "aB3" * 11 + "x"


@pytest.fixture
def facts():
    return CardFacts(
        title="Digits, seen and dialled",
        encoders={
            "image": EncoderFacts("ViTModel", 120_345, kind="image"),
            "audio": EncoderFacts("WhisperEncoder", 230_000, hub_name="openai/whisper-tiny", kind="audio"),
        },
        accuracy={
            "validation": {"image": 0.90, "audio": 0.80, "fused": 0.95, "calibrated": 0.96},
            "test": {"image": 0.91, "audio": 0.81, "fused": 0.94, "calibrated": 0.97},
        },
        dataset="dialled digits",
        rows={"train": 1257, "validation": 270, "test": 270},
        num_classes=10,
        num_parameters=400_000,
        peak_folder="unimodal",
        calibration_error={"fused": 0.081, "calibrated": 0.024},
        information={
            "end of stage 1": (
                120,
                make_information(redundancy=1.2, unique={"image": 0.4, "audio": 0.1}, synergy=0.05, floor={}),
            ),
            "end of training": (
                240,
                make_information(
                    redundancy=1.5,
                    unique={"image": 0.5, "audio": 0.02},
                    synergy=0.01,
                    floor={"image": 0.03, "audio": 0.03, "synergy": 0.04, "redundancy": 0.02},
                    interval={"redundancy": (1.4, 1.6)},
                ),
            ),
        },
        rule="peak-synergy",
        decisions=[(60, "image leads: U 0.80 | 0.10 bits; it is paused."), (120, "Stage 1 ends.")],
        trajectory="trajectory.png",
        reliability="reliability.png",
        hyperparameters={"learning_rate": 1e-3, "max_grad_norm": None},
        versions={"python": "3.11.7", "torch": "2.13.0"},
    )


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    return re.split(r"\n#+ ", card.split(f"# {title}\n", 1)[1])[0]


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("by_clusters", "source"),
    [
        ((True, True), "clusters of the embeddings"),
        ((False, False), "the answers of each modality's head"),
        (
            (True, False),
            "the answers of each modality's head (where they are not trained, of clusters of the embeddings)",
        ),
    ],
)
def test_the_card_says_what_was_decomposed(facts, by_clusters, source):
    bits = [make_information(conditional_mutual_information=0.02 if each else None) for each in by_clusters]
    moments = {"end of stage 1": (120, bits[0]), "end of training": (240, bits[1])}
    card = render_card(replace(facts, information=moments))
    assert f"Partial information decomposition of {source} and the label" in card
    assert f"Information in bits is estimated from {source}, on a finite sample" in section(
        card, "Limitations"
    )
    assert "Information in bits" not in render_card(replace(facts, information={}))


def test_header_says_what_the_hub_needs_and_no_more(facts):
    card = render_card(replace(facts, license="apache-2.0"))
    assert card.startswith("---\n")
    assert header(card) == {
        "library_name": "ecsfusion",
        "license": "apache-2.0",
        "tags": ["multimodal", "two-stage", "partial-information-decomposition", "audio", "image"],
        "base_model": ["openai/whisper-tiny"],
        "base_model_relation": "finetune",
        "pipeline_tag": "image-classification",
        "metrics": ["accuracy"],
    }


@pytest.mark.parametrize(
    ("stages", "words"), [("two-stage", "in two stages: first"), ("joint", "all modalities jointly.")]
)
def test_the_card_says_how_it_was_trained(facts, stages, words):
    card = render_card(replace(facts, stages=stages))
    assert words in card.split("## Load it")[0]
    assert header(card)["tags"][1] == stages


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        (
            ("scouting", "unimodal", "joint"),
            "each modality by itself, after some joint training to scout, then all",
        ),
        (
            ("scouting", "joint"),
            "jointly: stage 1 ended while it scouted, and no modality was trained by itself",
        ),
        (("unimodal", "joint"), "in two stages: first each modality by itself, then all of them jointly"),
    ],
)
def test_the_card_says_whether_stage_one_scouted(facts, phases, words):
    assert words in render_card(replace(facts, phases=phases)).split("## Load it")[0]


def test_the_card_says_whose_weights_answer_and_who_waited(facts):
    plain = render_card(facts)
    assert "The whole model has 400,000 parameters.\n" in plain
    assert "own best" not in plain
    assert "waited" not in plain
    one = render_card(replace(facts, best_heads={"image": 1200}, excluded_from_readout=("audio",)))
    assert "400,000 parameters, a second encoder and head of image included." in one
    assert (
        "the model answers for image with the weights of step 1,200, its own best on validation: a second copy of its "
        "encoder and head, beside that which the fused head reads."
    ) in section(one, "Accuracy")
    assert "audio was paused in stage 1, so that the other modalities could learn." in one
    two = render_card(replace(facts, best_heads={"image": 120, "audio": 60}))
    assert "a second encoder and head of image and of audio included" in two
    assert (
        "for image with the weights of step 120 and audio with the weights of step 60, each its own best"
        in two
    )


def test_data_on_the_hub_is_linked_and_carries_the_results(facts):
    card = render_card(replace(facts, dataset_hub_name="someone/digits"))
    fields = header(card)
    assert fields["datasets"] == ["someone/digits"]
    result = fields["model-index"][0]["results"][0]
    assert result["dataset"]["type"] == "someone/digits"
    assert [metric["value"] for metric in result["metrics"]] == [0.94, 0.97]
    assert "https://huggingface.co/datasets/someone/digits" in section(card, "Data")


def test_every_head_and_split_is_in_the_accuracy_table(facts):
    table = [line for line in section(render_card(facts), "Accuracy").splitlines() if line.startswith("|")]
    assert table == [
        "| head | validation | test |",
        "| --- | --- | --- |",
        "| image alone | 90.0 % | 91.0 % |",
        "| audio alone | 80.0 % | 81.0 % |",
        "| fused head | 95.0 % | 94.0 % |",
        "| calibrated combination | 96.0 % | 97.0 % |",
    ]


def test_three_modalities(facts):
    facts = replace(
        facts,
        encoders={**facts.encoders, "text": EncoderFacts("BertModel", 9_000, pretrained=True, kind="text")},
        accuracy={"test": {"image": 0.5, "audio": 0.4, "text": 0.7, "fused": 0.8}},
        information={
            "end of training": (
                240,
                make_information(
                    ("image", "audio", "text"),
                    redundancy=0.2,
                    unique={"image": 0.1, "audio": 0.05, "text": 0.6},
                    synergy=0.0,
                    floor={},
                ),
            )
        },
    )
    card = render_card(facts)
    assert "fuses image, audio and text" in card
    assert "| text | BertModel | 9,000 | pretrained, from local files |" in card
    assert "| text alone | 70.0 % |" in card
    assert "| uniqueness of text | 0.600 |" in card
    assert "calibrated combination |" not in card
    assert header(card)["tags"][-3:] == ["audio", "image", "text"]


def test_fusion_ahead_of_its_parts_is_not_called_worse(facts):
    card = render_card(facts)
    assert "worse" not in card
    assert (
        "On test the fused head is better than image alone, the best of its parts: 94.0 % against 91.0 % "
        "(8 of 270 rows)." in card
    )


def test_fusion_behind_a_part_is_said_at_the_top_and_below_the_table(facts):
    behind = {"image": 0.91, "audio": 0.81, "fused": 0.85, "calibrated": 0.90}
    card = render_card(replace(facts, accuracy={**facts.accuracy, "test": behind}))
    for sentence in (
        "**On test the fused head is worse than image alone: 85.0 % against 91.0 % (16 of 270 rows).**",
        "**On test the calibrated combination is worse than image alone: 90.0 % against 91.0 % (3 of 270 rows).**",
    ):
        assert sentence in card.split("## Load it")[0]
        assert sentence in section(card, "Accuracy")
    assert "On validation the fused head is better" in section(card, "Accuracy")


def test_calibrated_combination_is_compared_with_the_fused_head_too(facts):
    card = render_card(replace(facts, accuracy={"test": {"image": 0.5, "fused": 0.8, "calibrated": 0.7}}))
    assert "the calibrated combination is worse than the fused head: 70.0 % against 80.0 %" in card


def test_pid_table_shows_bits_floors_and_intervals(facts):
    text = section(render_card(facts), "What each modality knows about the label")
    assert "| bits | end of stage 1 (step 120) | end of training (step 240) |" in text
    assert "| redundancy | 1.200 | 1.500 (1.400 to 1.600, floor 0.020) |" in text
    assert "| uniqueness of image | 0.400 | 0.500 (floor 0.030) |" in text
    assert "High uniqueness is not reliability" in text


def test_pid_sentence_ranks_what_is_clear_and_names_what_is_noise(facts):
    text = section(render_card(facts), "What each modality knows about the label")
    assert (
        "At the end of training, 1.50 bits about the label are known to both modalities and 0.50 bits are "
        "known to image alone; uniqueness of audio and synergy are not above the noise."
    ) in text
    step, information = facts.information["end of training"]
    doubtful = replace(information, interval={"image": (-0.1, 1.1)})
    assert "; uniqueness of audio and synergy are not above the noise; uniqueness of image may be zero." in (
        render_card(replace(facts, information={"end of training": (step, doubtful)}))
    )
    wide = dict.fromkeys(("redundancy", "image", "audio", "synergy"), (0.0, 2.0))
    for groups, of in ((2, "rows of 2 groups"), (None, "so few rows")):
        doubtful = replace(information, interval=wide, num_groups=groups)
        assert f"each value may be zero: the intervals of {of} are wide." in render_card(
            replace(facts, information={"end of training": (step, doubtful)})
        )
    floor = {"redundancy": 9.0, "image": 9.0, "audio": 9.0, "synergy": 9.0}
    silent = replace(information, floor=floor)
    assert "nothing that the modalities say about the label rises above" in render_card(
        replace(facts, information={"end of training": (step, silent)})
    )


def test_decisions_picture_and_calibration(facts):
    card = render_card(facts)
    assert "![trajectory](trajectory.png)" in card
    assert "](reliability.png)" in section(card, "Accuracy")
    assert "| 60 | image leads: U 0.80 \\| 0.10 bits; it is paused. |" in card
    assert "Expected calibration error on test: 0.081 before and 0.024 after calibration" in card
    assert "| `learning_rate` | 0.001 |" in card
    assert "max_grad_norm" not in card


def test_sections_without_facts_are_left_out(facts):
    nothing = {
        "information": {},
        "decisions": (),
        "trajectory": None,
        "hyperparameters": {},
        "calibration_error": {},
    }
    card = render_card(replace(facts, **nothing)).replace("Information in bits is", "")
    for word in ("bits", "trajectory", "Decisions", "Hyperparameters", "calibration error", "None", "\n\n\n"):
        assert word not in card


@pytest.mark.parametrize("repo_id", [None, "someone/digits-model"])
def test_code_in_the_card_compiles_and_loads_both_stages(facts, repo_id):
    code = snippets(render_card(replace(facts, repo_id=repo_id)))
    assert len(code) == 2
    for snippet in code:
        compile(snippet, "card", "exec")
        assert len([line for line in snippet.splitlines() if line]) <= 3
    assert ('revision="unimodal"' in code[1]) == (repo_id is not None)
    assert (repo_id or "path/to/this/folder/unimodal") in code[1]


def test_code_in_the_card_of_own_encoders_gives_them_again(facts):
    own = {**facts.encoders, "pulse": EncoderFacts("Sensor", 60, own=True)}
    for snippet in snippets(render_card(replace(facts, encoders=own))):
        compile(snippet, "card", "exec")
        assert snippet.rstrip().endswith(', encoders={"pulse": Sensor(...)})')
    assert "encoders=" not in render_card(facts)


def test_a_path_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output" / "encoder").mkdir(parents=True)
    assert hub_name("openai/whisper-tiny") == "openai/whisper-tiny"
    assert hub_name("bert-base-uncased") == "bert-base-uncased"
    for path in (None, "", str(tmp_path), "../encoder", "./encoder", "output/encoder", "a/b/c", "~/encoder"):
        assert hub_name(path) is None


@pytest.mark.parametrize(
    "leak",
    [
        "trained on /data/private/digits",
        "see `/home/jane/run`",
        "[log](/mnt/runs/1)",
        "data_dir=../shared/data",
        "~/models/encoder",
        "file:///data/x",
        r"C:\Users\jane",
        f"token {TOKEN}",
    ],
)
def test_local_paths_and_tokens_are_refused_by_line(leak):
    with pytest.raises(ValueError, match=r"^line 2 ") as caught:
        check_no_secrets(f"harmless\n{leak}\n")
    assert TOKEN not in str(caught.value)


def test_paths_of_this_run_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="runs/first"):
        check_no_secrets("saved in runs/first", forbidden=["runs/first"])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        check_no_secrets(f"saved in {tmp_path}", forbidden=["output"])


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/someone/root/home",
        "accelerate launch hf_recipes/run.py",
        "openai/whisper-tiny and path/to/this/folder",
        "the output of and/or, I(X1;X2|Y), 12 samples/s, R / (R + S)",
    ],
)
def test_harmless_text_passes(text):
    check_no_secrets(text, forbidden=["output"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": {}}, "encoders is empty"),
        ({"accuracy": {}}, "accuracy is empty"),
        ({"accuracy": {"test": {"fused": 94.0}}}, "share between 0 and 1"),
        ({"stages": "three"}, "stages is 'three'; give one of two-stage, joint, unimodal"),
        ({"repo_id": "/data/model"}, "repo_id is '/data/model'"),
        ({"dataset_hub_name": "../data"}, "dataset_hub_name is '../data'"),
        (
            {"encoders": {"image": EncoderFacts("ViTModel", 1, hub_name="/data/vit")}},
            "hub_name is '/data/vit'",
        ),
        ({"dataset": "/data/private/digits"}, "local path '/data/private"),
        ({"hyperparameters": {"hub_token": TOKEN}}, "Hub token"),
    ],
)
def test_bad_facts_are_refused(facts, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        render_card(replace(facts, **change))
