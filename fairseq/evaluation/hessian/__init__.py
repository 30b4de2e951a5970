"""How flat a minimum is: trace, spectrum and top eigenvalues of the loss's curvature."""
