"""How the embedded first-tier model was made: data, training, quantization, export and evaluation, runnable."""
