"""What the benchmarks measured, read from their JSON: a page with pictures and tables, and a guard against losses."""

from crane.bench.page import write_page
from crane.bench.ratios import Finding, Ratios, check, record
from crane.bench.results import Peer, Results, Row, load

__all__ = ["Finding", "Peer", "Ratios", "Results", "Row", "check", "load", "record", "write_page"]
