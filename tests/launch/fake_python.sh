#!/bin/bash
# A stand-in for a worker's Python: makes an environment of itself, and ends runs
# as CLOUD/plan says: a line a start, a word a worker, STATUS or STATUS@SECONDS.
worker=$(basename "$HOME")
case "$1 $2" in
  '-m venv')
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    ;;
  *' -m pip' | '-m pip')
    echo "pip $worker $*" >>"$CLOUD/pip"
    ;;
  '-m t5x.check_devices')
    echo "16 devices, $worker"
    [[ ! -e $CLOUD/too_few_chips ]] || exit 1
    ;;
  '-m t5x.train')
    starts=$CLOUD/starts-$worker
    echo "$*" >>"$starts"
    line=$(sed -n "$(wc -l <"$starts")p" "$CLOUD/plan")
    read -ra words <<<"$line"
    word=${words[${worker#worker-}]:-0}
    echo "step of $worker, secret has ${#SECRET_KEY} letters"
    trap 'exit 75' TERM
    if [[ $word == *@* ]]; then
      sleep "${word#*@}" &
      wait $!
    fi
    exit "${word%@*}"
    ;;
esac
