"""stub"""
def report_line(folder): return "report: (stub)"
