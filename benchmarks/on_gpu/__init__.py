"""The parts of ``benchmarks.gpu``: what the engine does on a GPU, measured in one unattended run."""
