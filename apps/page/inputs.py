"""Images and clips for a prompt: samples, and uploads, of which none is trusted."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import streamlit as st
from PIL import Image

from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.session import Session
from vlmopt.apps.page.state import Clip, Given
from vlmopt.frames import load_video
from vlmopt.media import load_image
from vlmopt.paths import check_file
from vlmopt.synthetic import samples
from vlmopt.synthetic.clips import write_clip

MEGABYTES = 50  # of one file; the server refuses more as well
MEGAPIXELS = 50
LONGEST = 200  # times its other side: Qwen's processor takes no more, and a preview of one would have no height
IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")
CLIPS = ("mp4", "mov", "webm", "mkv", "avi")
TITLE = 80  # characters of a file's name that are shown


@dataclass(frozen=True)
class Sample:
    """Something to start from, with a question that fits it."""

    label: str
    question: str
    task: str
    file: str = ""  # in the package; without one it is the generated clip


SAMPLES = (
    Sample("Screenshot", "Click Save.", "click", "screen.png"),
    Sample("Web page", "Click Save.", "click", "page.png"),
    Sample("Scene", "Describe the picture.", "describe", "scene.png"),
    Sample("Video", "How many shapes are there?", "answer"),
)


@st.cache_data(show_spinner=False)
def sample(number: int) -> Given:
    """Return a sample as a prompt takes it; the clip is made once for all sessions."""
    chosen = SAMPLES[number]
    if chosen.file:
        return Given((load_image(Path(samples.__path__[0]) / chosen.file).image,), title=chosen.file)
    path = write_clip(Path(tempfile.mkdtemp(prefix="vlmopt-demo-")) / "clip.mp4")
    return Given(clip=Clip(str(path), "clip.mp4"), title="clip.mp4")


def title_of(name: str) -> str:
    """Return what is shown of an uploaded file's name: its last part alone, printable, not too long."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:TITLE] or "upload"


def received(name: str, content: bytes, folder: Path) -> Given:
    """Return an uploaded file as a prompt takes it; on disk it lies in `folder`, under a name of our own choice.

    Raises:
        ValueError: a type, a size or contents that cannot be taken, in one sentence.
    """
    title = title_of(name)
    ending = name.rpartition(".")[2].lower()  # of the whole name: the title may be shortened
    if ending not in (*IMAGES, *CLIPS):
        raise ValueError(f"{title} is neither an image ({', '.join(IMAGES)}) nor a video ({', '.join(CLIPS)}).")
    if len(content) > MEGABYTES * 2**20:
        raise ValueError(f"{title} has {len(content) / 2**20:.0f} MB; at most {MEGABYTES} MB are taken.")
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.{ending}"
    path.write_bytes(content)
    try:
        if ending in CLIPS:
            check_file(path, "video")
            load_video(path, min_frames=2, max_frames=2, max_pixels=128 * 28**2)  # whether it can be read
            return Given(clip=Clip(str(path), title), title=title)
        check_file(path, "image")
        check_pixels(path)
        loaded = load_image(path)
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise ValueError(str(error).replace(str(path), title)) from error
    return Given((loaded.image,), title=title, notes=loaded.notes)


def check_pixels(path: Path) -> None:
    """Refuse a huge image by what its header says, before it is unpacked."""
    try:
        with Image.open(path) as opened:
            width, height = opened.size
    except Exception:  # whatever the decoder raised, `load_image` meets it again and says what is wrong
        return
    if width * height > MEGAPIXELS * 10**6:
        raise ValueError(
            f"{path} has {width} x {height} pixels; at most {MEGAPIXELS} million are taken. Scale it down first."
        )
    if max(width, height) > LONGEST * min(width, height):
        raise ValueError(
            f"{path} has {width} x {height} pixels; one side may be at most {LONGEST} times the other. Crop it first."
        )


def touched() -> None:
    """Note that the uploader was used: from now on what lies in it counts, also nothing."""
    st.session_state.touched = True


def uploaded(session: Session) -> Given | None:
    """Draw the uploader and return what came of it; an error is shown as a sentence.

    After a reload the uploader is empty, but what lay in it is still there.
    """
    file = st.file_uploader(
        "Image or short video",
        type=[*IMAGES, *CLIPS],
        key="upload",
        max_upload_size=MEGABYTES,
        on_change=touched,
        help=f"Up to {MEGABYTES} MB and {MEGAPIXELS} million pixels. It stays on the machine that runs this page.",
    )
    if file is None:
        if st.session_state.get("touched"):
            session.given = None
        elif session.given is not None:
            st.caption(f"Still here: {escaped(session.given.title)}")
        return session.given
    known = st.session_state.get("received")
    if known is None or known[0] != file.file_id:
        try:
            known = (file.file_id, received(file.name, file.getvalue(), session.folder), None)
        except ValueError as error:
            known = (file.file_id, None, str(error))
        st.session_state.received = known
    session.given = known[1]
    refused: str | None = known[2]
    if refused is not None:
        st.error(escaped(refused), icon=":material/broken_image:")
    return session.given
