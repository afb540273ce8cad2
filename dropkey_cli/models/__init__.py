"""Networks, by the name timm gives them; importing this package registers our own with timm: T2T-ViT and CeiT."""

from dropkey_cli.models import ceit as ceit
from dropkey_cli.models import t2t_vit as t2t_vit
