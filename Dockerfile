# The BraSyn contract as a container: /input/CASE/ with one contrast missing -> /output/CASE-t1c.nii.gz
# (or -t1n, -t2w, -t2f). docs/container.md says how to build and run it, on a CPU or a GPU.
FROM python:3.12-slim-bookworm AS build
# of the wheels of torch: those for a CPU are small; for CUDA .../whl/cu126
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
RUN python -m venv /opt/dsdiff
ENV PATH=/opt/dsdiff/bin:$PATH
COPY constraints/cpu.txt constraints/cpu.txt
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" --requirement constraints/cpu.txt
COPY setup.py pyproject.toml README.md LICENSE dsdiff.py ./
COPY configs configs
COPY guided_diffusion guided_diffusion
COPY UNet_DS_Diff UNet_DS_Diff
COPY ldm ldm
RUN pip install --no-cache-dir .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/dsdiff /opt/dsdiff
# whoever it runs as: what is written beside /output goes to /tmp, and nothing is asked of a network
ENV PATH=/opt/dsdiff/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["dsdiff", "brasyn", "--input", "/input", "--output", "/output", "--model", "/model"]
