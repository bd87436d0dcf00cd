# Other scripts source this file first. With --help they print the comment at their head, and with another
# flag in place of their first argument they stop, before they write anything.

case ${1:-} in
    -h | --help)
        for file in "$0" "${BASH_SOURCE[1]}"; do
            # Once, and not what only prepares a script.
            if [ "$file" = "$0" ] || { [ "${file##*/}" != "${0##*/}" ] && head -n 1 "$file" | grep -q '^#!'; }; then
                awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$file"
            fi
        done
        exit 0
        ;;
    -*)
        echo "error: $1 is not known. bash $0 --help shows what is." >&2
        exit 2
        ;;
esac
