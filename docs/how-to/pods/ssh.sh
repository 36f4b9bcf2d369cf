#!/bin/bash
hosts=(${HOSTS:-10.0.0.1 10.0.0.2})
for i in "${!hosts[@]}"; do
    ssh "${hosts[$i]}" JAXLOOP_COORDINATOR="${hosts[0]}:1234" JAXLOOP_PROCESSES=${#hosts[@]} \
        JAXLOOP_PROCESS=$i jaxloop run ratio_sweep --workdir=s3://bucket/sweep &
    waited+=($!)
done
code=0
for process in "${waited[@]}"; do
    wait "$process" || code=$?
done
exit $code
