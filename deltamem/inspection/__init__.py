"""`deltamem inspect`: describes a backbone, an adapter or a memory, and what a conversation writes to a memory."""

from deltamem.inspection.backbone import inspect_model, print_inspection
from deltamem.inspection.writes import LayerWrites, left_of, writes_of

__all__ = ["LayerWrites", "inspect_model", "left_of", "print_inspection", "writes_of"]
