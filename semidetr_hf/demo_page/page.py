"""The page itself: a detector is tried on a picture, controls choose what of its detections is shown.

The page asks for nothing from outside: gradio's fonts and scripts are files of its own, its telemetry is off.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import gradio as gr
from PIL import Image

from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.demo_page.found import LOWEST_SCORE, Detector, Found, choose, detect, draw, table, to_json
from semidetr_hf.demo_page.pseudo_labels import Comparison

THRESHOLD = 0.3  # as in `semidetr predict`
COLUMNS = ["class", "score", "x", "y", "width", "height"]
BUTTONS: list[Any] = ["fullscreen", "download"]  # gradio would offer to share a picture with its makers, too
MOST_SESSIONS = 100  # visitors whose last picture is kept in memory
SECONDS_KEPT = 3600  # of pictures on the disk and in memory
NOTHING_YET = "Give a picture, or take one of the examples."
STYLE = "#download {max-width: 16rem}"
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
# The file is made in the browser, so that the server keeps none.
SAVE = """(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "detections.json";
    link.click();
    URL.revokeObjectURL(link.href);
}"""


def build_page(
    detector: Detector,
    examples: Sequence[Image.Image] = (),
    *,
    comparison: Comparison | None = None,
    no_comparison: str = "",
) -> gr.Blocks:
    """Return the page for a detector.

    Args:
        detector: as `open_detector` returns it.
        examples: pictures to begin with, RGB.
        comparison: teacher and student of a run, shown on a second tab.
        no_comparison: why the run has none, shown there instead; empty if there is no run.
    """
    title = f"Detections of {detector.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
        gr.Markdown(f"# {title}")
        if comparison is None and not no_comparison:
            _add_detection(detector, examples)
            return page
        with gr.Tab("Pictures"):
            _add_detection(detector, examples)
        with gr.Tab("Pseudo-labels"):
            if comparison is None:
                gr.Markdown(no_comparison)
            else:
                _add_comparison(comparison)
    return page


def serve(
    page: gr.Blocks, *, port: int | None = None, share: bool = False, quiet: bool = False, blocks: bool = True
) -> str:
    """Start the server of the page and return its address.

    Args:
        page: as `build_page` returns it.
        port: None for the environment variable GRADIO_SERVER_PORT, or the first free one from 7860.
        share: whether gradio makes a public address for it, through a server of theirs.
        quiet: whether the address is not told on stdout.
        blocks: whether to serve until the process is interrupted.

    Raises:
        OSError: if the port is taken.
    """
    _, address, public = page.launch(
        server_port=port,
        share=share,
        prevent_thread_lock=not blocks,
        show_error=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        state_session_capacity=MOST_SESSIONS,
        quiet=quiet,
        css=STYLE,
        theme=THEME,
    )
    return str(public or address)


def _add_detection(detector: Detector, examples: Sequence[Image.Image]) -> None:
    """Add the controls, what they show, and what happens when they are used."""
    names = detector.names
    found = gr.State(None, time_to_live=SECONDS_KEPT)
    with gr.Row():
        with gr.Column():
            picture = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "webcam", "clipboard"],
                label="Picture",
                height=360,
            )
            if examples:
                gr.Examples([[example] for example in examples], [picture], label="Examples", elem_id="examples")
        with gr.Column():
            summary = gr.Markdown(NOTHING_YET, elem_id="summary")
            drawn = _picture(None, elem_id="drawn", height=360)
            controls = [found, *_add_controls(detector)]
    rows = gr.Dataframe(headers=COLUMNS, interactive=False, show_label=False, elem_id="rows")
    text = gr.Textbox(visible=False)
    save = gr.Button("Download as json", elem_id="download", interactive=False)

    def show(found: Found | None, threshold: float, nms: bool, labels: list[int]) -> list[Any]:
        if found is None:
            return [None, NOTHING_YET, None, "[]", gr.update(interactive=False)]
        chosen = choose(found, threshold=threshold, nms=nms, labels=labels)
        count = f"**{len(chosen)}** of {len(found)} detections with a score above {LOWEST_SCORE} are shown."
        texts = [table(chosen, names), to_json(chosen, names)]
        return [draw(chosen, names), count, *texts, gr.update(interactive=True)]

    shown = [drawn, summary, rows, text, save]
    picture.change(lambda path: _detect(detector, path), picture, found).then(show, controls, shown)
    gr.on(
        [control.change for control in controls[1:]],
        show,
        controls,
        shown,
        show_progress="hidden",
        trigger_mode="always_last",
    )
    save.click(None, text, js=SAVE)


def _add_controls(detector: Detector) -> list[Any]:
    """Add and return what chooses the detections that are shown: threshold, switch against duplicates, classes."""
    threshold = gr.Slider(LOWEST_SCORE, 1, THRESHOLD, step=0.01, label="Smallest score", elem_id="threshold")
    nms = gr.Checkbox(
        detector.needs_nms,
        label="Remove duplicates (NMS)",
        info=f"Of two boxes of a class that overlap by an IoU above {detector.nms_iou:g}, the better one stays.",
        elem_id="nms",
    )
    classes = gr.Dropdown(
        [(name, label) for label, name in enumerate(detector.names)],
        value=[],
        multiselect=True,
        label="Classes",
        info="None chosen: all are shown.",
        elem_id="classes",
    )
    return [threshold, nms, classes]


def _add_comparison(comparison: Comparison) -> None:
    """Add the pictures of teacher and student; a slider chooses the student's detections."""
    student, (lowest, highest) = comparison.student, comparison.thresholds
    scores = f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}, depending on the class,"
    gr.Markdown(
        f"Unlabeled images of the run. Left what the teacher gives the student to learn from: its detections with a "
        f"score of {scores} or more. Right what the student finds itself."
    )
    threshold = gr.Slider(
        LOWEST_SCORE, 1, THRESHOLD, step=0.01, label="Smallest score of the student", elem_id="student-threshold"
    )

    def of_student(threshold: float) -> list[Image.Image]:
        return [
            draw(choose(image.student, threshold=threshold, nms=student.needs_nms), student.names)
            for image in comparison.images
        ]

    pictures = []
    for image, drawn in zip(comparison.images, of_student(THRESHOLD), strict=True):
        with gr.Row():
            with gr.Column():
                gr.Markdown(f"`{PurePath(image.name).name}`, teacher: {len(image.pseudo_labels)} pseudo-labels")
                _picture(draw(image.pseudo_labels, student.names), elem_classes="teacher")
            with gr.Column():
                gr.Markdown("student")
                pictures.append(_picture(drawn, elem_classes="student"))
    threshold.change(of_student, threshold, pictures, show_progress="hidden", trigger_mode="always_last")


def _picture(value: Image.Image | None, **place: Any) -> gr.Image:
    """Add a picture to look at; without a label, which would cover its corner, and without loss in its file."""
    return gr.Image(value, show_label=False, interactive=False, format="png", buttons=BUTTONS, **place)


def _detect(detector: Detector, path: str | Path | None) -> Found | None:
    if path is None:
        return None
    try:
        return detect(detector, path)
    except UnreadableImageError as error:
        gr.Warning(str(error))
        return None
