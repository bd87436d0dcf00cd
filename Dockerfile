# A container with this checkout and its packages; GPUs need the NVIDIA container toolkit.
#   docker build -t simmim-xray .
#   docker run --gpus all --ipc=host -v DATA:/data:ro -v $PWD/output:/work/output simmim-xray \
#       torchrun --nproc_per_node 2 main_simmim.py --cfg configs/... --data-path /data
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends git gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /work
COPY requirements*.txt constraints.txt ./
RUN pip install --no-cache-dir -r requirements-studies.txt -c constraints.txt
COPY . .
