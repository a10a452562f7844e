"""Which peer runs where, with what pins and thread settings."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".peers"

_PIP = "pip>=23.2"

# pip's arguments, one call each.
ENVIRONMENTS = {
    "torch": (
        _PIP,
        "torch==2.13.0 numpy==2.4.6 pfl==0.6.0",
        # FedLab asks for torchvision too, for its own data sets alone.
        "pandas scikit-learn nvidia-ml-py munch tqdm pillow",
        "--no-deps fedlab==1.3.0",
    ),
    "fedjax": (_PIP, "fedjax==0.0.17 jax==0.10.2 numpy==2.4.6"),
}

PEERS = {  # peer: its environment
    "pytorch": "torch",
    "fedjax": "fedjax",
    "fedlab": "torch",
    "pfl": "torch",
}

THREADS = ("1", "2")


def python(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return FOLDER / PEERS[peer] / "bin" / "python"
