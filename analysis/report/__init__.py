"""The report: one HTML page (report, page, summary, levels), its figures (drawing, scatter_drawing, style), tables for LaTeX."""
