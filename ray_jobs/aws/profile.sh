# Environment of every login shell on a node, and so of Ray and its workers (cluster.yaml installs it).
export PATH="$HOME/env/bin:$PATH"
# Ray refuses whoever has no token; the token itself is in ~/.ray/auth_token.
export RAY_AUTH_MODE=token
# NCCL over EFA: libfabric's provider, GPUs read and write the network cards directly (p4d has the hardware for it), and
# the plug-in that the image carries. NCCL_DEBUG=INFO in a job's log shows "Selected provider is efa" where it works.
export FI_PROVIDER=efa
export FI_EFA_USE_DEVICE_RDMA=1
export NCCL_DEBUG=WARN
export LD_LIBRARY_PATH="/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu:/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export HF_HOME=/scratch/hf
