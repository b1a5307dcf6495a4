"""Devices by name, from their makers' data sheets; and what is assumed of links, power and efficiency.

- max1550, max1550-tile: Intel, "Data Center GPU Max Series" product brief: 832 TFLOP/s bf16 (XMX), 52 fp32, 128 GB, 3.2 TB/s, 600 W a card;
  a tile is half of it
- a100: NVIDIA, "A100 80GB SXM" data sheet: 312 TFLOP/s bf16 dense, 19.5 fp32, 80 GB, 2.0 TB/s, 400 W, NVLink 600 GB/s in both directions
- h100: NVIDIA, "H100 SXM" data sheet: 989 TFLOP/s bf16 dense, 67 fp32, 80 GB, 3.35 TB/s, 700 W, NVLink 900 GB/s in both directions

A data sheet's peak is never reached. `efficiency` is the share of it that the products of a forward and backward pass reach, an assumption
that belongs to the answer; `--efficiency` changes it. Links between hosts are 200 Gbit/s a host unless `--network-gbits` says otherwise.
"""

from dataclasses import dataclass

NETWORK_GBITS = 200.0


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as a rank sees it."""

    bf16_tflops: float
    fp32_tflops: float
    memory_gib: float
    watts: float
    link_gb_per_second: float
    """To its neighbour in the same host, one direction, 10^9 bytes."""
    efficiency: float
    memory_gb_per_second: float
    """10^9 bytes."""

    def reached_flops(self, bf16: bool) -> float:
        """Floating-point operations per second that are taken to be reached."""
        return (self.bf16_tflops if bf16 else self.fp32_tflops) * 1e12 * self.efficiency


DEVICES = {
    "max1550": Device(
        bf16_tflops=832, fp32_tflops=52, memory_gib=119.2, watts=600, link_gb_per_second=15, efficiency=0.2, memory_gb_per_second=3277
    ),
    "max1550-tile": Device(
        bf16_tflops=416, fp32_tflops=26, memory_gib=59.6, watts=300, link_gb_per_second=15, efficiency=0.2, memory_gb_per_second=1638
    ),
    "a100": Device(
        bf16_tflops=312, fp32_tflops=19.5, memory_gib=74.5, watts=400, link_gb_per_second=300, efficiency=0.4, memory_gb_per_second=2039
    ),
    "h100": Device(
        bf16_tflops=989, fp32_tflops=67, memory_gib=74.5, watts=700, link_gb_per_second=450, efficiency=0.35, memory_gb_per_second=3350
    ),
}
