"""3x3 homographies between an original image and its views, and what they do to boxes.

Convention: column vectors (x, y, 1); x to the right, y down; the origin is the top-left *corner* of the image, so the
centre of the first pixel is (0.5, 0.5) and an image of width W spans 0..W. A homography maps original pixels to view
pixels; the map from one view to another is `compose(invert(weak), strong)`.

Source: the released code of Semi-DETR (arXiv 2307.08095), which maps boxes between views in this way: corners are
mapped, divided homogeneously, and hulled by an axis-aligned box. The released code keeps boxes that leave the view;
here the caller drops them with `has_visible_area`.
"""

import torch
from torch import Tensor


def identity() -> Tensor:
    """Return the (3, 3) float64 homography that changes nothing."""
    return torch.eye(3, dtype=torch.float64)


def scaling(scale_x: float, scale_y: float) -> Tensor:
    """Return the (3, 3) homography of a resize; the two factors are new size / old size of width and height."""
    return torch.diag(torch.tensor([scale_x, scale_y, 1.0], dtype=torch.float64))


def horizontal_flip(width: float) -> Tensor:
    """Return the (3, 3) homography that mirrors an image of the given width in pixels."""
    return torch.tensor([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def translation(shift_x: float, shift_y: float) -> Tensor:
    """Return the (3, 3) homography that moves the content right and down by so many pixels."""
    return torch.tensor([[1.0, 0.0, shift_x], [0.0, 1.0, shift_y], [0.0, 0.0, 1.0]], dtype=torch.float64)


def rotation(degrees: float, center: tuple[float, float]) -> Tensor:
    """Return the (3, 3) homography that turns the content clockwise, as seen on the screen, about `center` (x, y)."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cosine, sine = float(angle.cos()), float(angle.sin())
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return compose(translation(-center[0], -center[1]), turn, translation(center[0], center[1]))


def shear(factor_x: float, factor_y: float) -> Tensor:
    """Return the (3, 3) homography of a shear along x (x += factor_x * y), then along y (y += factor_y * x)."""
    horizontal = torch.tensor([[1.0, factor_x, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    vertical = torch.tensor([[1.0, 0.0, 0.0], [factor_y, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return compose(horizontal, vertical)


def compose(*homographies: Tensor) -> Tensor:
    """Return one homography that applies the given (..., 3, 3) ones in the order in which they are written.

    Raises:
        ValueError: if none is given.
    """
    if not homographies:
        raise ValueError("compose() needs at least one homography, got none")
    result = homographies[0]
    for homography in homographies[1:]:
        result = homography @ result
    return result


def invert(homography: Tensor) -> Tensor:
    """Return the inverse of a (..., 3, 3) homography.

    Raises:
        ValueError: if there is none, because it flattens the image to a line or a point.
    """
    try:
        return torch.linalg.inv(homography)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"homography={homography.tolist()} has no inverse: it flattens the image; check its scales and shears"
        ) from error


def apply_to_boxes(homography: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Map boxes and return the axis-aligned hull of each.

    Args:
        homography: (3, 3) float64.
        boxes_xyxy: (G, 4) float, pixels.

    Returns:
        (G, 4) in the dtype of `boxes_xyxy`. The hull of a turned or sheared box is larger than the object.
    """
    x1, y1, x2, y2 = boxes_xyxy.to(homography.dtype).unbind(-1)
    corners = torch.stack(
        [torch.stack([x1, x2, x2, x1], -1), torch.stack([y1, y1, y2, y2], -1), torch.ones_like(boxes_xyxy).to(x1)], -1
    )  # (G, 4, 3)
    mapped = corners @ homography.T
    points = mapped[..., :2] / mapped[..., 2:]
    return torch.cat([points.amin(dim=1), points.amax(dim=1)], dim=-1).to(boxes_xyxy.dtype)


def clip_boxes(boxes_xyxy: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip (G, 4) pixel boxes to an image of `image_size` = (height, width)."""
    height, width = image_size
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0), limit)


def has_visible_area(boxes_xyxy: Tensor, min_size: float = 0.0) -> Tensor:
    """Return a (G,) bool mask of the boxes whose width and height are both larger than `min_size` pixels."""
    return ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) > min_size).all(dim=-1)
