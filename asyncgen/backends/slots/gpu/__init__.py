"""The in-flight engine on a GPU: the same slots at fixed shapes, so that steps are captured once and replayed."""
