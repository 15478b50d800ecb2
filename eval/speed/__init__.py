"""Speed: what training costs at the paper's size, on the hardware at hand."""
