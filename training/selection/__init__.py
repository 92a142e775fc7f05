"""Which conversations a pretrained model chooses: its scores of them (frontier), the choice (selections), tables of it
(selection_report)."""
