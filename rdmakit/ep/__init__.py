"""Expert parallelism: MoE dispatch and combine, their NumPy truth, routers and recorded routing."""
