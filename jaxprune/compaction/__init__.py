"""The smaller network, proved equal to the masked one; its artefact and its cost."""
